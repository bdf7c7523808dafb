// The stage: one video from submitted to played.

import { contentUrl, empty, fill } from "./api.js";
import { pieces } from "./prompt.js";

const WORDS = {
  queued: "Waiting in the wings",
  starting: "Setting the stage",
  encode: "Meeting the cast",
  denoise: "Rehearsing",
  decode: "Developing the film",
  store: "Putting it away",
  done: "Done",
};

export class Stage {
  #at; #shown = null;

  constructor(elements) {
    this.#at = elements;
    elements.smooth.addEventListener("click", () => this.#toggleSmooth());
    elements["sheet-toggle"].addEventListener("click", () => this.#toggleSheet());
    elements.preview.addEventListener("error", () => { elements.preview.hidden = true; });
  }

  // Shows a Video object of the service, whatever its state.
  show(video) {
    const isNew = this.#shown?.id !== video.id;
    if (isNew) this.clear();
    const was = isNew ? null : this.#shown.status;
    this.#shown = video;
    this.#fit(video.size);
    this.#at.empty.hidden = true;
    if (video.status === "completed") {
      if (was !== "completed") this.#showResult(video);
    } else if (video.status === "failed") this.#showFailure(video);
    else this.#showProgress(video);
  }

  get video() {
    return this.#shown;
  }

  clear() {
    const { player, preview, status, result, verdict, veil, sheet } = this.#at;
    this.#shown = null;
    player.pause();
    for (const part of [player, preview, sheet]) empty(part);
    player.load();
    for (const part of [player, preview, status, result, verdict, veil]) part.hidden = true;
    this.#at.empty.hidden = false;
  }

  // A sentence for those who listen instead of looking.
  announce(text) {
    if (this.#at.announce.textContent !== text) this.#at.announce.textContent = text;
  }

  #fit(size) {
    const [width, height] = size.split("x").map(Number);
    this.#at.frame.style.aspectRatio = `${width} / ${height}`;
    this.#at.frame.classList.toggle("tall", height > width);
  }

  #showProgress(video) {
    const { status, veil, preview, progress } = this.#at;
    status.hidden = veil.hidden = false;
    progress.value = video.progress;
    const words = WORDS[video.stage] ?? video.stage;
    this.#at["stage-name"].textContent = words;
    this.#at["stage-eta"].textContent = video.status === "queued" ? place(video) : `${video.progress} %`;
    this.#at["stage-detail"].textContent = detail(video);
    if (video.preview) {
      const path = `${video.preview}&step=${video.step}`;
      const isShown = () => preview.dataset.path === path;
      fill(preview, path).then(() => { if (isShown()) preview.hidden = false; })
        .catch(() => { if (isShown()) preview.hidden = true; });
    }
    this.announce(words);
  }

  #showResult(video) {
    const { status, veil, preview, result, player, download, notice } = this.#at;
    status.hidden = veil.hidden = preview.hidden = true;
    empty(preview);
    fill(player, contentUrl(video.id, "video")).then(() => {
      if (this.#shown?.id !== video.id) return null;
      download.href = player.src;
      return player.play();
    }).catch(() => { player.controls = true; });
    player.hidden = result.hidden = false;
    this.#at.faces.replaceChildren(...video.subjects.map((one, at) => face(one, at, video.identity)));
    this.#at.faces.hidden = video.subjects.length === 0;
    this.#at.told.replaceChildren(...telling(video));
    this.#at.facts.textContent = facts(video);
    notice.textContent = video.warnings.join(" ");
    notice.hidden = video.warnings.length === 0;
    download.download = `troupe-${video.seed}.mp4`;
    const { sheet, "sheet-link": link } = this.#at;
    fill(sheet, contentUrl(video.id, "spritesheet")).then(() => { link.href = sheet.src; }).catch(() => {});
    this.announce("The video is ready.");
  }

  #showFailure(video) {
    const { status, veil, preview, verdict } = this.#at;
    status.hidden = veil.hidden = preview.hidden = true;
    this.#at.empty.hidden = false;
    verdict.textContent = video.error?.message ?? "The video could not be made.";
    verdict.hidden = false;
  }

  #toggleSmooth() {
    const isSmooth = this.#at.frame.classList.toggle("smooth");
    this.#at.smooth.setAttribute("aria-pressed", String(isSmooth));
  }

  #toggleSheet() {
    const { sheet } = this.#at;
    sheet.hidden = !sheet.hidden;
    this.#at["sheet-toggle"].setAttribute("aria-expanded", String(!sheet.hidden));
  }
}

function place({ queue_position: ahead, eta_s: eta }) {
  const where = ahead ? `${ahead} before you` : "you are next";
  return eta ? `${where}, about ${seconds(eta)}` : where;
}

function detail({ status, stage, step, steps, eta_s: eta, attempts }) {
  const parts = [];
  if (stage === "denoise" && step !== null) parts.push(`step ${step} of ${steps}`);
  if (status === "in_progress" && eta !== null) parts.push(`about ${seconds(eta)} to go`);
  if (attempts > 1) parts.push(`start number ${attempts}`);
  return parts.join(", ");
}

const seconds = (value) => (value < 90 ? `${Math.max(1, Math.round(value))}\u00a0s` : `${Math.round(value / 60)}\u00a0min`);

function face({ name, reference }, index, identity) {
  const item = document.createElement("li");
  const picture = document.createElement("img");
  item.className = `cast-${index}`;
  fill(picture, reference).catch(() => { /* its name stays */ });
  picture.alt = `Picture of ${name}`;
  item.append(picture, name);
  const seen = identity?.subjects.find((one) => one.name === name);
  if (seen) item.append(likeness(seen));
  return item;
}

function likeness({ name, similarity, missing, looks_like: other, switched }) {
  const line = document.createElement("small");
  const percent = Math.max(0, Math.round(100 * similarity));
  const flaw = missing ? "hardly seen" : other ? `looks like ${other}` : switched ? "trades places" : "";
  line.className = flaw ? "flaw" : "";
  line.textContent = flaw || `${percent} % alike`;
  line.title = `Similarity of ${name} to its picture: ${percent} %`;
  return line;
}

function telling({ prompt, subjects }) {
  const names = subjects.map(({ name }) => name);
  return pieces(prompt).map(({ text, name }) => {
    if (!name) return document.createTextNode(text);
    const bold = document.createElement("b");
    bold.className = `cast-${names.indexOf(name)}`;
    bold.textContent = text;
    return bold;
  });
}

function facts({ size, seconds: length, fps, steps, seed, guidance, tier, forwards, timings, model, model_digest: digest }) {
  const parts = [
    size.replace("x", " × "), `${Number(length).toFixed(1)} s at ${fps} fps`, `${steps} steps`,
    `guidance ${guidance.scale}`, `seed ${seed}`,
  ];
  if (tier !== "exact") parts.push(forwards ? `${tier}: ${forwards.computed} of ${forwards.asked} forwards` : tier);
  if (timings.total_s) parts.push(`made in ${seconds(timings.total_s)}`);
  parts.push(digest ? `${model} ${digest.replace(/^sha256:/, "").slice(0, 8)}` : model);
  return parts.join(" · ");
}
