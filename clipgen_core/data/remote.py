"""List and read the files of a store, many at once.

A request to a store is mostly waiting, but s3fs takes about 2 ms of one core for each, and half a
millisecond for each key of a listing, which no number of threads makes less. So S3 is read by obstore, which
takes a tenth of that. What it cannot read is read again by fsspec's filesystem, whose errors count.
Knows nothing of images.
"""

import importlib
from datetime import timedelta
from typing import Any

REQUESTS = 128  # at a store at once
SMALL = 2**24  # bytes up to which a file is read by obstore; of larger ones a request is a small part
ATTEMPTS = 3  # failures that turn obstore off, if it has read nothing before
RENEWED = timedelta(minutes=5)  # after which credentials are asked for again
OPTIONS = {"endpoint_url", "key", "secret", "token", "anon"}  # of s3fs, which `_s3_store` passes on
CLIENT = {"allow_http": True, "timeout": "60s"}
RETRIES = {"max_retries": 1, "retry_timeout": timedelta(seconds=10)}

OF_CREDENTIALS = {  # codes of S3 that are no matter of one object
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}

Entry = dict[str, Any]


class Reader:
    """Lists folders and reads files as an fsspec filesystem does, but of S3 several times as many a second.

    Args:
        filesystem: An fsspec filesystem.
        path: Of a folder on it, in the bucket that is read.
    """

    def __init__(self, filesystem: Any, path: str) -> None:
        self.filesystem, self.bucket = filesystem, path.partition("/")[0]
        self._store = _store(filesystem, self.bucket)
        self._worked, self._failures = False, 0
        self._listed: tuple[str, list[Entry]] = ("", [])
        self._given = ""  # the file that was read last

    def read(self, path: str, size: int = 0, start: int = 0, end: int | None = None) -> bytes:
        """Read a file, or a part of it.

        Args:
            path: Its path on the filesystem.
            size: How many bytes that are as far as it is known, else 0.
            start: The first byte to read.
            end: The byte after the last; the file's end if None.

        Returns:
            The bytes.

        Raises:
            Exception: That of `filesystem.cat_file`.
        """
        data = self._read(path, size, start, end)
        self._given = path
        return data

    def _read(self, path: str, size: int, start: int, end: int | None) -> bytes:
        if self._store is not None and size <= SMALL and (key := self._key(path)):
            try:
                data = _get(self._store, key, start, end)
            except Exception:
                self._note_failure()
            else:
                self._worked = True
                return data
        some: dict[str, int] = {"start": start, "end": end} if end else {}
        return bytes(self.filesystem.cat_file(path, **some))

    def ls(self, path: str) -> list[Entry]:
        """List a folder; the last listing is kept.

        Args:
            path: Its path on the filesystem.

        Returns:
            What `filesystem.ls` returns with `detail=True`.

        Raises:
            Exception: That of `filesystem.ls`.
        """
        if self._listed[0] == path:
            return self._listed[1]
        if self._store is not None and (key := self._key(path)) is not None:
            try:
                entries = _list(self._store, self.bucket, key)
            except Exception:  # also names that obstore does not know, such as `a//b`
                entries = []
            if entries:
                self._listed = path, entries
                return entries
        found: list[Entry] = self.filesystem.ls(path, detail=True)
        return found

    def refuses_one(self, refusal: PermissionError, folder: str) -> bool:
        """Whether the store refuses a single file: it still lists, and gives what it gave before.

        Args:
            refusal: The error.
            folder: A folder to list.

        Returns:
            False if nothing may be read any more, as with a token that has expired.
        """
        response = getattr(refusal.__cause__, "response", {})
        if response.get("Error", {}).get("Code") in OF_CREDENTIALS:
            return False
        self.filesystem.invalidate_cache()
        try:
            self.filesystem.ls(folder)
            if self._given:
                self._read(self._given, 0, 0, 1)
        except Exception:
            return False
        return True

    def _key(self, path: str) -> str | None:
        """The key in the bucket; None where obstore would read another one, since it drops empty names."""
        bucket, _, key = path.partition("/")
        return key if bucket == self.bucket and (not key or all(key.split("/"))) else None

    def _note_failure(self) -> None:
        self._failures += 1
        if self._failures >= ATTEMPTS and not self._worked:
            self._store = None


def _get(store: Any, key: str, start: int, end: int | None) -> bytes:
    import obstore

    found = obstore.get_range(store, key, start=start, end=end) if end else obstore.get(store, key).bytes()
    return bytes(found)


def _list(store: Any, bucket: str, key: str) -> list[Entry]:
    """The entries of a folder, in the words of s3fs.

    Raises:
        ValueError: A folder in it has no name.
    """
    import obstore

    found = obstore.list_with_delimiter(store, key or None)
    folders = [str(one) for one in found["common_prefixes"]]
    if key in folders:
        raise ValueError("a folder without a name")
    return [{"name": f"{bucket}/{one}", "type": "directory", "size": 0} for one in folders] + [
        {"name": f"{bucket}/{one['path']}", "type": "file", "size": one["size"]}
        | {"ETag": one["e_tag"], "LastModified": one["last_modified"]}
        for one in found["objects"]
        if one["path"] != key  # an object that stands for the folder
    ]


def _store(filesystem: Any, bucket: str) -> Any | None:
    """What obstore reads the bucket by; None for other stores, and if it cannot be set up as s3fs is."""
    options = getattr(filesystem, "storage_options", {})
    if "s3" not in filesystem.protocol or not set(options) <= OPTIONS:
        return None
    try:
        return _s3_store(filesystem, bucket, options)
    except Exception:
        return None


def _s3_store(filesystem: Any, bucket: str, options: dict[str, Any]) -> Any:
    stores, auth = (importlib.import_module(f"obstore.{name}") for name in ("store", "auth.boto3"))
    meta = filesystem.s3.meta
    if options.get("anon"):
        access: dict[str, Any] = {"skip_signature": True}
    elif "key" in options:
        names = {"key": "access_key_id", "secret": "secret_access_key", "token": "session_token"}
        access = {name: options[one] for one, name in names.items() if options.get(one)}
    else:
        access = {"credential_provider": auth.Boto3CredentialProvider(ttl=RENEWED)}
    return stores.S3Store(
        bucket,
        endpoint=meta.endpoint_url,
        region=meta.region_name or "us-east-1",
        client_options=CLIENT,
        retry_config=RETRIES,
        **access,
    )
