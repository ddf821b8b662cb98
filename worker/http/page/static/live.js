// Keeps what is marked with data-live current, every three seconds while the page is looked at.
"use strict";
(() => {
  const EVERY = 3000;
  // The answer to a form that was not followed is the view of another address.
  const view = document.getElementById("main").dataset.view || location.href;
  let busy = false;

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

  async function refresh() {
    if (busy || document.visibilityState !== "visible") return;
    busy = true;
    try {
      const answer = await fetch(view, {
        headers: { "X-Live": "1" }, cache: "no-store", credentials: "same-origin",
      });
      if (answer.ok && !answer.redirected) {
        swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
      } else if (answer.status === 401) {
        clearInterval(timer);
      }
    } catch {
      // The server is away: the next time may work.
    } finally {
      busy = false;
    }
  }

  const timer = document.querySelector("[data-live]") ? setInterval(refresh, EVERY) : 0;
})();
