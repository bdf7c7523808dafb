// The service's HTTP interface, as far as the studio uses it.

export class ApiError extends Error {
  // `param` is the field at fault as the service names it, e.g. "subjects[1].image".
  constructor(message, status, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

const KEY = "troupe-key"; // in sessionStorage: of this tab, until it is closed

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export function useKey(text) {
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

const keyed = () => (hasKey() ? { authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {});

// Where the service wants a key, or another one, the window hears "locked".
async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: keyed() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not answer. Is it running?", 0, null);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const told = body.error ?? {};
  if (answer.status === 401) dispatchEvent(new CustomEvent("locked", { detail: told.message }));
  throw new ApiError(told.message ?? `The service answers ${answer.status}.`, answer.status, told.param ?? null);
}

const json = async (path, options) => (await request(path, options)).json();

// spec: plain fields of POST /v1/videos; cast: [{name, file}] in slot order.
export function createVideo(spec, cast) {
  const form = new FormData();
  for (const [name, value] of Object.entries(spec)) form.append(name, String(value));
  const named = cast.map(({ name, file }) => ({ name, file, image: `${name}.${extension(file)}` }));
  if (named.length) {
    form.append("subjects", JSON.stringify(named.map(({ name, image }) => ({ name, image }))));
  }
  for (const { file, image } of named) form.append("images", file, image);
  return json("/v1/videos", { method: "POST", body: form });
}

export async function getVideo(id, signal) {
  const answer = await request(`/v1/videos/${id}`, { signal, cache: "no-store" });
  const wait = Number(answer.headers.get("openai-poll-after-ms"));
  return { video: await answer.json(), waitMs: wait > 0 ? Math.min(wait, 3000) : 700 };
}

export const listVideos = (after) =>
  json(`/v1/videos?limit=12&order=desc${after ? `&after=${after}` : ""}`, { cache: "no-store" });

export const cancelVideo = (id) => json(`/v1/videos/${id}/cancel`, { method: "POST" });

export const deleteVideo = (id) => json(`/v1/videos/${id}`, { method: "DELETE" });

export const contentUrl = (id, variant) => `/v1/videos/${id}/content?variant=${variant}`;

// Puts what lies at a path into an element. Elements send no key, so with one it goes through a blob.
export async function fill(element, path) {
  if (element.dataset.path === path) return;
  element.dataset.path = path;
  let url = path;
  if (hasKey()) url = URL.createObjectURL(await (await request(path, { cache: "no-store" })).blob());
  const before = element.getAttribute("src") ?? "";
  const isLate = element.dataset.path !== path; // meanwhile something else was asked for
  if (!isLate) element.src = url;
  const done = isLate ? url : before;
  if (done.startsWith("blob:")) URL.revokeObjectURL(done);
}

export function empty(element) {
  const { src } = element;
  delete element.dataset.path;
  element.removeAttribute("src");
  if (src.startsWith("blob:")) URL.revokeObjectURL(src);
}

export async function fetchPicture(path, name) {
  const blob = await (await request(path)).blob();
  return new File([blob], `${name}.${extension(blob)}`, { type: blob.type });
}

export async function fetchText(path) {
  return (await request(path)).text();
}

// What may be asked of the model that is served; the built-in numbers are the miniature's.
export async function getLimits() {
  const page = await json("/v1/models");
  return page.data?.[0] ?? {};
}

// {state: "ready" | "waiting" | "down", text}
export async function readiness() {
  let answer;
  try {
    answer = await fetch("/readyz", { cache: "no-store", headers: keyed() });
  } catch {
    return { state: "down", text: "The service does not answer" };
  }
  if (answer.ok) return { state: "ready", text: "Ready" };
  const body = await answer.json().catch(() => ({}));
  const missing = Object.values(body.checks ?? {}).filter((check) => !check.ok);
  return { state: "waiting", text: missing.map((check) => check.message).join(" ") || "Getting ready" };
}

const extension = (blob) => ({ "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" })[blob.type] ?? "img";
