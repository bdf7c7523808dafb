// What was made before: a page of cards, newest first.

import { contentUrl, deleteVideo, fill, listVideos } from "./api.js";

const BADGES = { queued: "waiting", in_progress: "in the making", failed: "failed", completed: "" };

export class History {
  #list; #template; #older; #none; #onOpen; #onDeleted; #onError;
  #cards = new Map(); // id -> element
  #after = null;

  constructor({ list, template, older, none, onOpen, onDeleted, onError }) {
    this.#list = list;
    this.#template = template;
    this.#older = older;
    this.#none = none;
    this.#onOpen = onOpen;
    this.#onDeleted = onDeleted;
    this.#onError = onError;
    older.addEventListener("click", () => this.load());
  }

  // Loads the next page; the first one to begin with.
  async load() {
    const page = await listVideos(this.#after);
    for (const video of page.data) this.#place(video, "append");
    this.#after = page.last_id ?? this.#after;
    this.#older.hidden = !page.has_more;
    this.#none.hidden = this.#cards.size > 0;
    return page.data;
  }

  // Adds a new video in front, or brings a known one up to date.
  update(video) {
    this.#place(video, "prepend");
    this.#none.hidden = true;
  }

  select(id) {
    for (const [key, card] of this.#cards) {
      card.classList.toggle("current", key === id);
      card.querySelector(".open").setAttribute("aria-current", String(key === id));
    }
  }

  #place(video, how) {
    let card = this.#cards.get(video.id);
    if (!card) {
      card = this.#make(video);
      this.#cards.set(video.id, card);
      this.#list[how](card);
    }
    card.querySelector(".badge").textContent = badge(video);
    const picture = card.querySelector("img");
    if (video.status === "completed") {
      fill(picture, contentUrl(video.id, "thumbnail")).catch(this.#onError);
    }
  }

  #make(video) {
    const card = this.#template.content.firstElementChild.cloneNode(true);
    card.querySelector(".words").textContent = video.prompt;
    card.querySelector(".when").textContent = when(video.created_at);
    card.querySelector(".open").addEventListener("click", () => this.#onOpen(video.id));
    const remove = card.querySelector(".delete");
    remove.setAttribute("aria-label", `Delete “${video.prompt}”`);
    remove.addEventListener("click", () => this.#delete(video.id));
    return card;
  }

  async #delete(id) {
    try {
      await deleteVideo(id);
    } catch (error) {
      if (error.status !== 404) return this.#onError(error);
    }
    const card = this.#cards.get(id);
    const next = card.nextElementSibling ?? card.previousElementSibling;
    card.remove();
    this.#cards.delete(id);
    this.#none.hidden = this.#cards.size > 0;
    next?.querySelector(".open").focus();
    return this.#onDeleted(id);
  }
}

const badge = ({ status, error }) => (error?.code === "cancelled" ? "stopped" : BADGES[status] ?? status);

function when(seconds) {
  const date = new Date(seconds * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  const style = isToday ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" };
  return date.toLocaleString(undefined, style);
}
