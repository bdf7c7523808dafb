// The cast: up to four pictures, each with a name that is legal and its own.

const NAMES = ["anna", "bob", "carla", "dan"];
const NAME = /^\p{L}[\p{L}\p{N}_]{0,31}$/u;
const MAX_BYTES = 12e6;
const TYPES = ["image/png", "image/jpeg", "image/webp"];

export class Cast {
  #list; #add; #template; #onChange; #onRefuse;
  members = []; // {name, file, url, element}
  limit = 4;

  constructor({ list, add, template, onChange, onRefuse }) {
    this.#list = list;
    this.#add = add;
    this.#template = template;
    this.#onChange = onChange;
    this.#onRefuse = onRefuse;
    this.#draw();
  }

  get names() {
    return this.members.map((member) => member.name);
  }

  // What is wrong with the names, as [{index, message}].
  faults() {
    return this.members.flatMap(({ name }, index) => {
      if (!name) return [{ index, message: `Picture ${index + 1} needs a name.` }];
      if (!NAME.test(name)) {
        return [{ index, message: `“${name}” is not a name: a letter, then letters, digits or _.` }];
      }
      const twice = this.names.indexOf(name) < index;
      return twice ? [{ index, message: `Two pictures are called ${name}.` }] : [];
    });
  }

  add(files) {
    for (const file of files) {
      if (!TYPES.includes(file.type)) this.#onRefuse(`${file.name} is not a PNG, JPEG or WebP picture.`);
      else if (file.size > MAX_BYTES) this.#onRefuse(`${file.name} is larger than 12 MB.`);
      else if (this.members.length >= this.limit) this.#onRefuse(`A cast has at most ${this.limit} pictures.`);
      else this.#join(file, this.#suggest(file));
    }
    this.#render();
  }

  // members: [{name, file}]; replaces the whole cast.
  replace(members) {
    for (const member of this.members) URL.revokeObjectURL(member.url);
    this.members = [];
    for (const { name, file } of members) this.#join(file, name);
    this.#render();
  }

  mark(index) {
    this.members[index]?.element.classList.add("invalid");
    return this.members[index]?.element.querySelector(".name");
  }

  #join(file, name) {
    const element = this.#template.content.firstElementChild.cloneNode(true);
    const member = { name, file, url: URL.createObjectURL(file), element };
    element.querySelector("img").src = member.url;
    const input = element.querySelector(".name");
    input.value = name;
    input.addEventListener("input", () => this.#rename(member, input));
    element.querySelector(".remove").addEventListener("click", () => this.#remove(member));
    this.members.push(member);
  }

  #rename(member, input) {
    const before = member.name;
    member.name = input.value.trim().replace(/^@/, "").normalize("NFC");
    this.#label(member);
    this.#onChange({ from: before, to: member.name });
  }

  #remove(member) {
    URL.revokeObjectURL(member.url);
    const index = this.members.indexOf(member);
    this.members.splice(index, 1);
    this.#render();
    const next = this.members[Math.min(index, this.members.length - 1)]?.element;
    (next?.querySelector(".remove") ?? this.#add.querySelector("input")).focus();
  }

  // The file's own name where it can be one, else the first of a few that is free.
  #suggest(file) {
    const stem = file.name.replace(/\.[^.]*$/, "").normalize("NFC").toLowerCase();
    if (NAME.test(stem) && stem.length <= 16 && !this.names.includes(stem)) return stem;
    return NAMES.find((name) => !this.names.includes(name)) ?? "";
  }

  #label({ element, name }) {
    element.querySelector("img").alt = `Picture of ${name || "an unnamed character"}`;
    element.querySelector(".remove").setAttribute("aria-label", `Remove ${name || "this picture"}`);
  }

  #render() {
    this.#draw();
    this.#onChange({});
  }

  #draw() {
    this.members.forEach((member, index) => {
      member.element.className = `member cast-${index}`;
      this.#label(member);
    });
    this.#list.replaceChildren(...this.members.map((member) => member.element), this.#add);
    this.#add.hidden = this.members.length >= this.limit;
    this.#add.classList.toggle("first", this.members.length === 0);
  }
}
