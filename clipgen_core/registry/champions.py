"""The champions of a registered model: promoting, rolling back, and healing what has come apart.

Knows versions, their tags and their aliases; knows nothing of how a generator is trained or judged.

Versions live in MLflow; which of them is champion is decided by `{root}/champions.lance`, a table with one
row a promotion, because MLflow's aliases know no compare-and-set: of two promotions that were judged against
the same champion, one inserts the next row and the other is refused. The aliases follow the table.
"""

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from clipgen_core.data.tables import find_table, upsert
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import list_folder
from clipgen_core.judging.checks import NOT_MEASURED, PASSED
from clipgen_core.registry.candidates import CANDIDATE, JUDGED_AGAINST, Candidates
from clipgen_core.registry.versions import CHECK
from clipgen_core.schema import CHAMPIONS
from clipgen_core.storage import Storage, remedy
from clipgen_core.tracking import find_version, mlflow_client, why, without_password

MODEL = "clip-gen"
CHAMPION_ALIAS, PREVIOUS = "champion", "previous"
REQUESTED = "promotion_requested"  # a tag of a version: when MLflow was asked whether it takes a promotion
SKEW = datetime.timedelta(minutes=10)  # between the clocks of MLflow and of who promotes


def promoted_under(out: Storage) -> list[str]:
    """The models of a root of which a version was promoted."""
    found = list_folder(out.path("champions"))
    return [one.removesuffix(".lance") for one in found if one.endswith(".lance")]


@dataclass(frozen=True)
class Promotion:
    """A row of the table of champions. version: "" if there is none; before: the version that was champion
    until then and can be again, "" if none."""

    number: int
    version: str
    before: str
    reason: str
    at: datetime.datetime


class Registry(Candidates):
    """The versions of one model and who of them is champion.

    Args:
        out: The root whose table of champions decides.
    """

    def __init__(self, client: Any, out: Storage, name: str = MODEL) -> None:
        super().__init__(client, out, name)
        self.ledger = out.champions(name)

    @classmethod
    def at(cls, tracking_uri: str, out: Storage, name: str = MODEL) -> "Registry":
        """The registry at an address.

        Args:
            tracking_uri: The address of MLflow.
            out: The root whose table of champions decides.
            name: The registered model.

        Returns:
            The registry.

        Raises:
            ClipgenError: MLflow does not answer.
        """
        return cls(mlflow_client(tracking_uri), out, name)

    def history(self) -> list[Promotion]:
        """All promotions and roll-backs, the latest last."""
        table = find_table(self.ledger)
        rows = table.to_table().to_pylist() if table else []
        return sorted((Promotion(**row) for row in rows), key=lambda row: row.number)

    def without_history(self) -> str:
        """What to say where no version was ever promoted: which models of the root have champions."""
        others = ", ".join(promoted_under(self.out))
        hint = f"; name a model of this root by --name: {others}" if others else ""
        return f"no version of {self.name} was promoted yet ({self.ledger}){hint}"

    def champion(self) -> str | None:
        """The version in use, None before the first promotion."""
        history = self.history()
        return (history[-1].version or None) if history else None

    def uri(self, version: str) -> str:
        """`models:/NAME/VERSION`, which MLflow in this process finds in this registry from now on.

        Raises:
            ClipgenError: It was champion, but MLflow has it no longer.
        """
        import mlflow

        self._require_there(version)
        mlflow.set_tracking_uri(self.client.tracking_uri)
        return f"models:/{self.name}/{version}"

    def promote(self, version: str | None = None) -> Promotion:
        """Make a judged version the champion; by default the candidate, which must have passed every check.

        A check that was not measured stops the candidate, but not a version that is named: whoever names it
        decides in the check's place. A failed check stops both.

        Raises:
            ClipgenError: It failed a check, was never judged, or not against today's champion; or it is the
                candidate, and a check was not measured.
        """
        self.require_own()
        name = f"{self.name}/{version}" if version else f"{self.name}@{CANDIDATE}"
        registered = find_version(self.client, f"models:/{name}")
        found, tags, history = str(registered.version), registered.tags, self.history()
        self._refuse_unless_passed(found, tags, named=version is not None)
        if JUDGED_AGAINST not in tags:
            raise ClipgenError(f"{self.name} version {found} was not judged: {remedy('evaluation')}")
        champion = history[-1].version if history else ""
        if found == champion:
            return self._follow()
        if tags[JUDGED_AGAINST] != (champion or "none"):
            raise ClipgenError(
                f"{self.name} version {found} was compared with version {tags[JUDGED_AGAINST]}, but the "
                f"champion is {champion or 'none'} now: {remedy('evaluation')}"
            )
        before = "" if champion in self._lost() else champion  # no way back to a version that is lost
        return self._append(history, found, "promotion", before=before)

    def _refuse_unless_passed(self, version: str, tags: Mapping[str, str], *, named: bool) -> None:
        checks = {key: said for key, said in tags.items() if key.startswith(CHECK) and said != PASSED}
        unmeasured = {key for key, said in checks.items() if said.startswith(NOT_MEASURED)}
        for check in checks.keys() - unmeasured:
            raise ClipgenError(f"{self.name} version {version} is not promoted: {check} {checks[check]}")
        for check in set() if named else unmeasured:
            raise ClipgenError(
                f"{self.name} version {version} is not promoted: {check} {checks[check]}; "
                f"or decide yourself, by `clipgen promote {version}`"
            )

    def require_own(self) -> None:
        """Refuse a model whose champion another root chose.

        Raises:
            ClipgenError: `models:/NAME@champion` is a version that was never champion under this root.
        """
        version = self._aliases().get(CHAMPION_ALIAS)
        if version is not None and str(version) not in {row.version for row in self.history()}:
            raise ClipgenError(
                f"models:/{self.name}@{CHAMPION_ALIAS} is version {version}, which another root promoted: "
                f"give each root an mlflow.model of its own, or delete the alias if {self.ledger} is lost"
            )

    def require_champion(self) -> None:
        """Raise if MLflow lacks the champion, with which a candidate is compared."""
        self._require_there(self.champion() or "")

    def require_no_champion(self) -> None:
        """Raise if the table names a champion, for where there is no MLflow at all."""
        if champion := self.champion():
            raise ClipgenError(
                f"{self.ledger} names version {champion} of {self.name} as champion, but there is no MLflow "
                f"yet: set MLFLOW_TRACKING_URI to the one that has it, or delete {self.ledger} if it is lost"
            )

    def require_all(self) -> None:
        """Raise if MLflow lacks a version of the table, as a registry that is not this root's does."""
        self._require_there(*(row.version for row in self.history() if row.version))

    def _require_there(self, *versions: str) -> None:
        """Refuse to go on with versions that were champion, but that MLflow has no longer."""
        lost = self._lost()
        for version in versions:
            if version in lost:
                raise ClipgenError(
                    f"version {version} of {self.name}, which {self.ledger} names, is no longer in MLflow: "
                    "`clipgen champions --repair` chooses the last champion that is, or none"
                )

    def _lost(self) -> set[str]:
        """The versions of the table that MLflow has no longer. One that was made after it was promoted is
        another of the same number, as in a new database."""
        with self._asking():
            there = self.client.search_model_versions(f"name = '{self.name}'")
        made = {
            str(one.version): datetime.datetime.fromtimestamp(one.creation_timestamp / 1000, datetime.UTC)
            for one in there
        }
        rows = [row for row in self.history() if row.version]
        return {row.version for row in rows if row.version not in made or made[row.version] > row.at + SKEW}

    def repair(self) -> list[str]:
        """Heal what has come apart: a champion or a previous one that MLflow lost, aliases that differ from
        the table.

        Returns:
            What was done, a clause each; empty if nothing was to be repaired.

        Raises:
            ClipgenError: Another root promotes this model, or MLflow does not do as it is told.
        """
        self.require_own()
        history, lost, done = self.history(), self._lost(), list[str]()
        latest = history[-1] if history else None
        if latest and latest.version in lost:
            left = [row.version for row in history if row.version and row.version not in lost]
            version = left[-1] if left else ""
            self._append(history, version, "repair", before="")
            done.append(f"the champion is {version or 'none'} now: MLflow lost version {latest.version}")
        elif latest and latest.before in lost:
            self._append(history, latest.version, "repair", before="")
            done.append(f"there is no way back any more: MLflow lost version {latest.before}")
        elif latest and (wrong := self._differing(latest)):
            self._follow()
            done += [f"the alias {alias} is {version or 'gone'} again" for alias, version in wrong.items()]
        return done

    def rollback(self) -> Promotion:
        """Make the previous champion the champion again; the two change places."""
        self.require_own()
        history = self.history()
        if not history or not history[-1].before:
            raise ClipgenError(f"{self.name} has had no other champion to roll back to")
        self._require_there(history[-1].version, history[-1].before)
        return self._append(history, history[-1].before, "rollback", before=history[-1].version)

    def _append(self, history: list[Promotion], version: str, reason: str, *, before: str) -> Promotion:
        number = history[-1].number + 1 if history else 1
        row = Promotion(number, version, before, reason, datetime.datetime.now(datetime.UTC))
        rows = pa.Table.from_pylist([asdict(row)], schema=CHAMPIONS)
        if version:  # nothing is written unless MLflow has the version and takes what it is told
            with self._asking():
                self.client.set_model_version_tag(self.name, version, REQUESTED, row.at.isoformat())
        mine = upsert(self.ledger, rows, "number", overwrite=False) or self.history()[number - 1] == row
        if not mine and self.champion() != version:
            raise ClipgenError(
                f"another promotion of {self.name} came first: version {self.champion()} is champion now; "
                f"compare with that one before trying again: {remedy('evaluation')}"
            )
        return self._follow()

    def _follow(self) -> Promotion:
        """Point the aliases to the versions of the table, and repeat that if the table has changed since."""
        while True:
            latest = self.history()[-1]
            with self._asking(
                f"{self.ledger} names version {latest.version or 'none'} as champion, and `clipgen champions "
                "--repair` lets the aliases in MLflow follow"
            ):
                for alias, version in self._differing(latest).items():
                    if version:
                        self.client.set_registered_model_alias(self.name, alias, version)
                    else:
                        self.client.delete_registered_model_alias(self.name, alias)
            if self.history()[-1] == latest:
                return latest

    def _differing(self, latest: Promotion) -> dict[str, str]:
        """The aliases that MLflow has otherwise, with the versions of the table; "" for none."""
        there = {alias: str(version) for alias, version in self._aliases().items()}
        named = {CHAMPION_ALIAS: latest.version, PREVIOUS: latest.before}
        return {alias: version for alias, version in named.items() if there.get(alias, "") != version}

    def _aliases(self) -> dict[str, str]:
        with self._asking():
            found = self.client.search_registered_models(f"name = '{self.name}'")
        return dict(found[0].aliases) if found else {}

    @contextmanager
    def _asking(self, otherwise: str = "nothing was changed") -> Iterator[None]:
        """Say in a sentence that MLflow does not do as it is told.

        Args:
            otherwise: What holds then.
        """
        try:
            yield
        except ClipgenError:
            raise
        except Exception as error:
            where = without_password(self.client.tracking_uri)
            raise ClipgenError(f"MLflow at {where} did not answer ({why(error)}): {otherwise}") from error
