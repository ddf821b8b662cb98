// Keeps what is marked with data-live current, every three seconds while the page is looked at.
"use strict";
(() => {
  const EVERY = 3000;
  // The answer to a form that was not followed is the view of another address.
  const view = document.getElementById("main").dataset.view || location.href;
  // The way back leads to the view: the browser does not ask whether to send the form once more.
  if (view !== location.href) history.replaceState(null, "", view);

  function holdsFocus(element) {
    return element.contains(document.activeElement);
  }

  function isOpen(element) {
    // What a person unfolded stays as it is.
    return element.querySelector("details[open]") !== null;
  }

  function swap(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(old.id);
      if (next && next.innerHTML !== old.innerHTML && !holdsFocus(old) && !isOpen(old)) {
        old.replaceWith(document.adoptNode(next));
      }
    }
  }

  // A view that takes long to read is renewed less often.
  function again(after) {
    setTimeout(refresh, Math.max(EVERY, 10 * after));
  }

  async function refresh() {
    if (document.visibilityState !== "visible") {
      again(0);
      return;
    }
    const begun = performance.now();
    try {
      const answer = await fetch(view, {
        headers: { "X-Live": "1" }, cache: "no-store", credentials: "same-origin",
      });
      if (answer.status === 401) return;
      if (answer.ok && !answer.redirected) {
        swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
      }
    } catch {
      // The server is away: the next time may work.
    }
    again(performance.now() - begun);
  }

  if (document.querySelector("[data-live]")) again(0);
})();
