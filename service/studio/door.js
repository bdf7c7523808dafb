// Where the service asks for an API key. It is kept for this tab only, and sent with every call.

import { hasKey, useKey } from "./api.js";

export class Door {
  // onKey: called when there is a key to try.
  constructor({ form, input, told, forget, onKey }) {
    forget.hidden = !hasKey();
    addEventListener("locked", ({ detail }) => {
      if (!form.hidden) return; // several calls were refused at once
      told.textContent = hasKey() ? detail : "";
      useKey("");
      forget.hidden = true;
      form.hidden = false;
      input.focus();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      useKey(input.value.trim());
      input.value = "";
      form.hidden = true;
      forget.hidden = false;
      onKey();
    });
    forget.addEventListener("click", () => {
      useKey("");
      location.reload();
    });
  }
}
