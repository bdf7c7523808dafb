// The operator's page: GET /v1/ops every two seconds, and one action, to cancel a job.
// Texts come from clients too, so everything is put in as text, never as HTML.

const EVERY_MS = 2000;
const $ = (id) => document.getElementById(id);
let key = ""; // in memory only
let showing = "";

async function ask(path, method = "GET") {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(10000) });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  throw Object.assign(new Error(body.error?.message ?? `The service answers ${answer.status}.`), { status: answer.status });
}

function make(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text ?? "";
  if (name) made.className = name;
  return made;
}

const word = (text, kind = "") => make("span", text, `word ${kind}`);

function age(ms) {
  const s = Math.round(ms / 1000);
  if (s < 100) return `${s} s`;
  if (s < 6000) return `${Math.round(s / 60)} min`;
  return s < 360000 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

// columns: [title, (row) => text or element, class]; a table without rows says so in words.
function fill(id, rows, columns, none) {
  const head = document.createElement("tr");
  head.append(...columns.map(([title]) => Object.assign(make("th", title), { scope: "col" })));
  const lines = rows.map((row) => {
    const line = document.createElement("tr");
    for (const [, cell, name] of columns) {
      const found = cell(row);
      const td = make("td", "", name);
      td.append(found ?? "");
      line.append(td);
    }
    return line;
  });
  if (rows.length) $(id).replaceChildren(head, ...lines);
  else $(id).replaceChildren(make("caption", none, "quiet"));
}

function bar(share) {
  const cell = make("span", "");
  const progress = Object.assign(document.createElement("progress"), { max: 1, value: share });
  progress.setAttribute("aria-hidden", "true");
  cell.append(progress, `${Math.round(100 * share)} %`);
  return cell;
}

function stopper(job) {
  const button = make("button", "Cancel");
  button.type = "button";
  button.setAttribute("aria-label", `Cancel ${job.ref}`);
  button.dataset.ref = job.ref;
  return button;
}

const attempts = (job) => job.history
  .map((one) => `start ${one.attempt}: ${one.ended} at step ${one.step}, after ${age(one.ms)}, on ${one.worker}`)
  .join("\n");

const stage = (job) => (job.stage === "denoise" ? `denoise ${job.step}/${job.steps}` : job.stage);

function tiles(seen) {
  const { books, workers, webhooks, redis } = seen;
  const able = workers.filter((one) => one.state === "idle" || one.state === "busy").length;
  const oldest = Math.max(0, ...seen.tenants.map((one) => one.oldest));
  const lease = Math.max(0, ...seen.running.map((one) => one.lease_age));
  const all = [
    ["waiting", books.queued, seen.delayed ? `${seen.delayed} of them later` : `oldest ${age(oldest)}`, ""],
    ["in hand", books.running, books.running ? `last heartbeat ${age(lease)} ago` : "nothing", ""],
    ["workers", `${able}/${workers.length}`, "fit to work", able ? "" : "bad"],
    ["books", books.balanced ? "balanced" : "off", `${books.submitted} = ${books.queued} + ${books.running} + ${books.completed} + ${books.failed}`, books.balanced ? "good" : "bad"],
    ["quarantine", seen.quarantined, "jobs that workers died of", seen.quarantined ? "bad" : ""],
    ["webhooks", webhooks.due, `due; ${webhooks.dead} given up`, webhooks.dead ? "bad" : ""],
    ["Redis", redis.safe ? "durable" : "unsafe", redis.message, redis.safe ? "good" : "bad"],
  ];
  $("tiles").replaceChildren(...all.map(([title, value, told, kind]) => {
    const tile = make("li", "", kind);
    tile.append(make("span", title), make("b", String(value)), make("span", told));
    return tile;
  }));
}

function show(seen) {
  tiles(seen);
  const spent = seen.tenants.reduce((sum, one) => sum + one.spent, 0) || 1;
  fill("tenants", seen.tenants, [
    ["tenant", (one) => one.name, "name"],
    ["waiting", (one) => String(one.waiting)],
    ["in hand", (one) => String(one.running)],
    ["oldest", (one) => (one.waiting ? age(one.oldest) : "")],
    ["weight", (one) => String(one.weight)],
    ["share of the last hours", (one) => bar(one.spent / spent)],
  ], "Nobody has asked for anything yet.");
  fill("running", seen.running, [
    ["job", (job) => job.ref, "name"],
    ["worker", (job) => seen.workers.find((one) => one.job === job.ref)?.id ?? "not on the roster", "name"],
    ["stage", stage],
    ["start", (job) => String(job.attempts)],
    ["held for", (job) => age(job.held)],
    ["heartbeat", (job) => `${age(job.lease_age)} ago`],
    ["", stopper],
  ], "No job is in hand.");
  fill("line", seen.line, [
    ["job", (job) => job.ref, "name"],
    ["waits for", (job) => age(job.age)],
    ["starts so far", (job) => String(job.attempts)],
    ["", stopper],
  ], "Nothing waits.");
  fill("workers", seen.workers, [
    ["worker", (one) => one.id, "name"],
    ["role", (one) => one.role],
    ["state", (one) => word(one.state, { idle: "good", busy: "good", unhealthy: "bad" }[one.state])],
    ["model", (one) => one.digest.slice(0, 12), "name"],
    ["runtime", (one) => one.runtime || "what fits there"],
    ["job, or what is wrong", (one) => one.message || one.job, "told"],
  ], "No worker is alive.");
  const ended = [
    ["job", (job) => job.ref, "name"],
    ["when", (job) => `${age(job.age)} ago`],
    ["why", (job) => `${job.code}: ${job.message}`, "told"],
    ["starts", attempts, "told"],
  ];
  fill("quarantine", seen.quarantine, ended, "Nothing is in quarantine.");
  fill("models", seen.models, [
    ["model", (one) => one.digest.slice(0, 12), "name"],
    ["why", (one) => one.reason, "told"],
    ["found by", (one) => one.worker, "name"],
  ], "No model is in quarantine.");
  fill("failures", seen.failures, ended, "Nothing failed lately.");
}

function tell(state, text) {
  $("status").dataset.state = state;
  $("status-text").textContent = text;
}

async function look() {
  try {
    const seen = await ask("/v1/ops");
    $("door").hidden = true;
    $("board").hidden = false;
    const fresh = JSON.stringify(seen);
    // A table that is replaced loses the keyboard's focus; put it back where it was.
    const focused = document.activeElement?.dataset?.ref;
    if (fresh !== showing) show(seen);
    showing = fresh;
    if (focused) document.querySelector(`button[data-ref="${CSS.escape(focused)}"]`)?.focus();
    tell("live", `As of ${new Date().toLocaleTimeString()}`);
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      $("door-error").textContent = key ? error.message : "";
      key = "";
      $("board").hidden = true;
      $("door").hidden = false;
      tell("waiting", "Needs a key");
      return; // until one is given
    }
    tell("down", error.status ? error.message : "The gateway does not answer");
  }
  setTimeout(look, EVERY_MS);
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  look();
});

document.addEventListener("click", async (event) => {
  const ref = event.target.dataset?.ref;
  if (!ref) return;
  event.target.disabled = true;
  try {
    await ask(`/v1/ops/jobs/${ref}/cancel`, "POST");
    event.target.textContent = "Stopping";
  } catch (error) {
    event.target.textContent = error.message;
  }
});

look();
