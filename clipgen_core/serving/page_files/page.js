() => {
  const names = ["prompt", "model", "n", "seed", "guidance_scale", "temperature", "compare_with"];
  const numbers = new Set(["n", "seed", "guidance_scale", "temperature"]);
  const waiting = "Waiting for the model.";
  window.clipgen = {
    /* Shows at once that a request was taken. */
    begin() {
      document.getElementById("results").scrollIntoView({ block: "start" });
      return waiting;
    },
    /* What is said after a request that failed before its answer began. */
    failed(said) {
      return said === waiting ? "" : said;
    },
    /* Writes a request into the page's address. */
    link(given) {
      const parameters = new URLSearchParams();
      names.forEach((name, i) => { if (given[i] !== "" && given[i] != null) parameters.set(name, given[i]); });
      history.replaceState(null, "", "?" + parameters);
    },
    /* Takes from the page's address what was generated before. */
    unlink() {
      history.replaceState(null, "", location.pathname);
    },
    /* Reads a request from the address; what it does not say stays as given. */
    linked(given) {
      const parameters = new URLSearchParams(location.search);
      return names.map((name, i) => {
        if (!parameters.has(name)) return given[i];
        const said = parameters.get(name);
        if (!numbers.has(name)) return said;
        return Number.isFinite(Number(said)) ? Number(said) : null;
      });
    },
    run() {
      if (new URLSearchParams(location.search).get("prompt")) document.getElementById("generate").click();
    },
  };
}
