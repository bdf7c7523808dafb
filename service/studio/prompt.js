// The prompt: who is mentioned, in which colour, and what does not fit the cast.

const MENTION = /(?<![\p{L}\p{N}_])@(\p{L}[\p{L}\p{N}_]*)/gu;

// Text as pieces: [{text, name}], name only for mentions ("@anna").
export function pieces(text) {
  const found = [];
  let read = 0;
  for (const match of text.matchAll(MENTION)) {
    if (match.index > read) found.push({ text: text.slice(read, match.index) });
    found.push({ text: match[0], name: match[1] });
    read = match.index + match[0].length;
  }
  if (read < text.length) found.push({ text: text.slice(read) });
  return found;
}

export const mentioned = (text) => new Set(pieces(text).flatMap(({ name }) => name ?? []));

// What is wrong with a prompt and a cast, before it is sent. `field` says where to look.
export function faults(text, names) {
  const called = mentioned(text);
  const found = [];
  if (!text.trim()) found.push({ field: "prompt", message: "Write what happens." });
  for (const name of called) {
    if (!names.includes(name)) {
      found.push({ field: "prompt", message: `@${name} has no picture.`, name });
    }
  }
  for (const name of names) {
    if (name && !called.has(name) && text.trim()) {
      found.push({ field: "prompt", message: `@${name} has a picture but no part in the scene.`, name });
    }
  }
  return found;
}

export class Prompt {
  #area; #mirror; #chips; #onChange;

  constructor({ area, mirror, chips, onChange }) {
    this.#area = area;
    this.#mirror = mirror;
    this.#chips = chips;
    this.#onChange = onChange;
    area.addEventListener("input", onChange);
    addEventListener("resize", () => this.#fit());
  }

  get text() {
    return this.#area.value;
  }

  set text(value) {
    this.#area.value = value;
    this.#onChange();
  }

  // A renamed character keeps its mentions.
  rename(from, to) {
    if (!from || !to || from === to) return;
    this.#area.value = pieces(this.text).map(({ text, name }) => (name === from ? `@${to}` : text)).join("");
  }

  insert(name) {
    const { selectionStart: start, selectionEnd: end, value } = this.#area;
    const before = start > 0 && !/\s$/.test(value.slice(0, start)) ? " " : "";
    const after = /^[\s.,;!?]/.test(value.slice(end)) ? "" : " ";
    this.#area.setRangeText(`${before}@${name}${after}`, start, end, "end");
    this.#area.focus();
    this.#onChange();
  }

  render(names) {
    const marks = pieces(this.text).map(({ text, name }) => {
      if (!name) return document.createTextNode(text);
      const mark = document.createElement("mark");
      mark.textContent = text;
      const index = names.indexOf(name);
      mark.className = index < 0 ? "stranger" : `cast-${index}`;
      return mark;
    });
    // The last line break of a textarea has height, that of a div has none.
    this.#mirror.replaceChildren(...marks, document.createTextNode("\u200b"));
    this.#renderChips(names);
    this.#fit();
  }

  #renderChips(names) {
    const called = mentioned(this.text);
    const chips = names.map((name, index) => {
      const chip = document.createElement("button");
      const isNamed = called.has(name);
      chip.type = "button";
      chip.className = `chip cast-${index} ${isNamed ? "named" : "unnamed"}`;
      chip.textContent = `@${name}`;
      chip.setAttribute("aria-label", `Put @${name} into the prompt${isNamed ? " once more" : ""}`);
      chip.addEventListener("click", () => this.insert(name));
      return chip;
    });
    this.#chips.replaceChildren(...chips.filter((_, index) => names[index]));
  }

  #fit() {
    this.#area.style.height = "auto";
    this.#area.style.height = `${this.#area.scrollHeight + 2}px`;
  }
}
