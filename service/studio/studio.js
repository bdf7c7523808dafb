// The studio page: wires the cast, the prompt, the options, the stage and the history together.

import {
  cancelVideo, createVideo, fetchPicture, fetchText, getLimits, getVideo, readiness,
} from "./api.js";
import { Cast } from "./cast.js";
import { Door } from "./door.js";
import { History } from "./history.js";
import { Options, randomSeed } from "./options.js";
import { Prompt, faults } from "./prompt.js";
import { Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const all = (...ids) => Object.fromEntries(ids.map((id) => [id, $(id)]));

// What a field of the service is called on the page, where the two differ.
const FIELDS = { seconds: "num_frames", guidance: "guidance", "guidance.scale": "guidance" };

let watching = null; // AbortController of the poll that runs
let wasRefused = false; // after a refused submit, faults are told as faults

const options = new Options(
  all("size", "num_frames", "steps", "guidance", "fps", "tier", "seed", "negative_prompt"), $("more-summary"),
);
const stage = new Stage(all(
  "frame", "empty", "preview", "player", "veil", "status", "stage-name", "stage-eta", "stage-detail",
  "progress", "verdict", "result", "faces", "told", "facts", "notice", "download", "smooth",
  "sheet-toggle", "sheet", "sheet-link", "announce",
));
const prompt = new Prompt({ area: $("prompt"), mirror: $("mirror"), chips: $("chips"), onChange: check });
const cast = new Cast({
  list: $("cast"), add: $("add-card"), template: $("cast-card"),
  onChange: ({ from, to }) => { prompt.rename(from, to); check(); },
  onRefuse: (message) => complain(message),
});
const history = new History({
  list: $("history"), template: $("history-card"), older: $("older"), none: $("history-empty"),
  onOpen: open, onDeleted: forget, onError: (error) => complain(error.message),
});

// ---- before it is sent

function check() {
  const found = [
    ...cast.faults().map((fault) => ({ ...fault, field: "subjects" })),
    ...faults(prompt.text, cast.names),
  ];
  prompt.render(cast.names);
  $("checks").replaceChildren(...lines(found));
  $("submit").classList.toggle("unready", found.length > 0);
  if (wasRefused) unmark();
  return found;
}

function lines(found) {
  const isUntouched = !prompt.text.trim() && !wasRefused;
  const told = isUntouched ? found.filter(({ field }) => field !== "prompt") : found;
  const items = told.map(({ message, field, name }) => line(message, wasRefused || field === "subjects" || isStranger(name) ? "bad" : ""));
  if (!found.length) items.push(line("Everyone has a part.", "good"));
  return items;
}

const isStranger = (name) => name && !cast.names.includes(name);

function line(text, kind) {
  const item = document.createElement("li");
  item.textContent = text;
  item.className = kind;
  return item;
}

// ---- errors

function complain(message, target = null) {
  const box = $("errors");
  if (target) {
    const jump = document.createElement("button");
    jump.type = "button";
    jump.textContent = message;
    jump.addEventListener("click", () => target.focus());
    box.replaceChildren(jump);
  } else box.textContent = message;
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

function unmark() {
  wasRefused = false;
  $("errors").hidden = true;
  for (const marked of document.querySelectorAll(".invalid")) marked.classList.remove("invalid");
  for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
}

// Marks the field that the service (or the check) names, and gives it the focus.
function blame(message, param) {
  const target = locate(param, message);
  if (target) {
    if (target.closest(".more")) $("more").open = true;
    (target.closest(".field") ?? target).classList.add("invalid");
    target.setAttribute("aria-invalid", "true");
  }
  complain(message, target);
  (target ?? $("errors")).focus();
  wasRefused = true;
}

function locate(param, message) {
  if (!param) return null;
  const subject = /^subjects\[(\d+)\]/.exec(param);
  if (subject) return cast.mark(Number(subject[1]));
  if (/^(subjects|images)/.test(param)) {
    // A picture is told by its file name, which is the name of its character.
    const index = cast.names.findIndex((name) => message.includes(`'${name}.`));
    return cast.mark(Math.max(index, 0)) ?? $("files");
  }
  const id = FIELDS[param] ?? param;
  return $("composer").elements.namedItem(id);
}

// ---- sending and watching

async function submit() {
  const found = check();
  if (found.length) {
    const { message, field, index } = found[0];
    wasRefused = true;
    $("checks").replaceChildren(...lines(found));
    return blame(message, field === "subjects" ? `subjects[${index}]` : field);
  }
  unmark();
  $("submit").disabled = true;
  try {
    const video = await createVideo({ prompt: prompt.text.trim(), ...options.values() }, cast.members);
    history.update(video);
    follow(video);
    if (matchMedia("(max-width: 60rem)").matches) $("stage").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    blame(error.message, error.param);
  } finally {
    $("submit").disabled = false;
  }
}

function follow(video) {
  watching?.abort();
  watching = new AbortController();
  stage.show(video);
  history.select(video.id);
  location.replace(`#${video.id}`);
  if (isOver(video)) return;
  poll(video.id, watching.signal).catch((error) => {
    if (error.name !== "AbortError") complain(error.message);
  });
}

const isOver = ({ status }) => status === "completed" || status === "failed";

async function poll(id, signal) {
  let misses = 0;
  while (!signal.aborted) {
    try {
      const { video, waitMs } = await getVideo(id, signal);
      misses = 0;
      stage.show(video);
      history.update(video);
      if (isOver(video)) return;
      await sleep(waitMs);
    } catch (error) {
      // A gateway or a ledger that restarts is back in seconds, and the job with it.
      if (![0, 503].includes(error.status) || ++misses > 20) throw error;
      await sleep(500 * misses);
    }
  }
}

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function open(id) {
  try {
    const { video } = await getVideo(id);
    follow(video);
    $("stage").scrollIntoView({ behavior: "smooth", block: "nearest" });
  } catch (error) {
    complain(error.message);
  }
}

function forget(id) {
  if (stage.video?.id !== id) return;
  watching?.abort();
  stage.clear();
  location.replace("#");
}

// Puts the pictures, the prompt and the numbers of a video back into the form.
async function takeUp(video) {
  const members = await Promise.all(video.subjects.map(async ({ name, reference }) => (
    { name, file: await fetchPicture(reference, name) }
  )));
  cast.replace(members);
  options.take(video);
  prompt.text = video.prompt;
}

async function again() {
  try {
    await takeUp(stage.video);
    options.seed = randomSeed();
    await submit();
  } catch (error) {
    complain(error.message);
  }
}

async function change() {
  try {
    await takeUp(stage.video);
    $("prompt").focus();
  } catch (error) {
    complain(error.message);
  }
}

async function loadExample() {
  try {
    const names = ["anna", "bob"];
    const files = await Promise.all(names.map((name) => fetchPicture(`examples/${name}.png`, name)));
    cast.replace(names.map((name, index) => ({ name, file: files[index] })));
    prompt.text = (await fetchText("examples/prompt.txt")).trim();
  } catch (error) {
    complain(error.message);
  }
}

// ---- wiring

function catchFiles() {
  const panel = document.body;
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  panel.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    panel.classList.add("dragging");
  });
  panel.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) panel.classList.remove("dragging");
  });
  panel.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    panel.classList.remove("dragging");
    take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) take(files);
  });
  $("files").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
}

function take(files) {
  unmark();
  cast.add(files);
}

async function watchService() {
  const { state, text } = await readiness();
  $("service").dataset.state = state;
  $("service-text").textContent = text;
  setTimeout(watchService, state === "ready" ? 20000 : 3000);
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("composer").addEventListener("input", (event) => { if (event.target.closest(".more")) unmark(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
});
$("dice").addEventListener("click", () => { options.seed = randomSeed(); });
$("load-example").addEventListener("click", loadExample);
$("again").addEventListener("click", again);
$("change").addEventListener("click", change);
$("cancel").addEventListener("click", () => cancelVideo(stage.video.id).catch((error) => complain(error.message)));
catchFiles();
check();
watchService();
new Door({ form: $("door"), input: $("key"), told: $("door-told"), forget: $("forget-key"), onKey: begin });
begin();

function begin() {
  unmark();
  getLimits().then((model) => {
    options.fit(model);
    cast.limit = model.limits?.max_subjects ?? cast.limit;
  }).catch(() => { /* the built-in numbers stay; the service line says that it is down */ });
  history.load().then((videos) => {
    const wanted = location.hash.slice(1);
    if (wanted) open(wanted);
    else if (videos[0] && !isOver(videos[0])) follow(videos[0]);
  }).catch((error) => { if (error.status !== 401) complain(error.message); });
}
