// Size, length, steps, guidance, seed, tier: what stands under "More".

// The miniature's numbers, until the service has told its own.
const MINIATURE = {
  limits: { size_multiple: 8, min_side: 32, max_side: 128, max_pixels: 16384, min_frames: 5, max_frames: 33, max_steps: 200, tiers: ["exact", "fast"] },
  defaults: { width: 96, height: 64, num_frames: 17, fps: 8, steps: 24, guidance: 2.5 },
};
const SHAPES = [[3, 2], [2, 3], [1, 1], [16, 9], [9, 16], [4, 3], [2, 1]];

export const randomSeed = () => Math.floor(Math.random() * 2 ** 32);

export class Options {
  #byId; #numbers = MINIATURE; #summary;

  constructor(byId, summary) {
    this.#byId = byId;
    this.#summary = summary;
    byId.seed.value = randomSeed();
    for (const input of Object.values(byId)) input.addEventListener("input", () => this.#tell());
    this.fit({});
  }

  // The service's own limits and defaults, where it tells them.
  fit({ limits = {}, defaults = {} }) {
    this.#numbers = {
      limits: { ...MINIATURE.limits, ...limits },
      defaults: { ...MINIATURE.defaults, ...defaults },
    };
    const { limits: bound, defaults: usual } = this.#numbers;
    const { size, num_frames, steps, guidance, fps, tier } = this.#byId;
    size.replaceChildren(...sizes(bound, usual).map(([width, height]) => new Option(`${width} × ${height}`, `${width}x${height}`)));
    range(num_frames, bound.min_frames, bound.max_frames, 4, usual.num_frames);
    range(steps, 4, Math.min(bound.max_steps, Math.max(60, usual.steps)), 1, usual.steps);
    range(guidance, 1, 8, 0.25, usual.guidance);
    fps.value = usual.fps;
    for (const option of tier.options) option.disabled = !bound.tiers.includes(option.value);
    this.#tell();
  }

  get seed() {
    return this.#byId.seed.value;
  }

  set seed(value) {
    this.#byId.seed.value = value;
    this.#tell();
  }

  // Fields of POST /v1/videos; what is empty is left to the service.
  values() {
    const given = Object.entries(this.#byId).map(([name, input]) => [name, input.value.trim()]);
    return Object.fromEntries(given.filter(([, value]) => value !== ""));
  }

  // Takes the numbers of an earlier video.
  take(video) {
    const { size, num_frames, steps, guidance, fps, tier, negative_prompt } = this.#byId;
    if (![...size.options].some((option) => option.value === video.size)) {
      size.add(new Option(video.size.replace("x", " × "), video.size));
    }
    size.value = video.size;
    num_frames.value = video.num_frames;
    steps.value = video.steps;
    guidance.value = video.guidance?.scale ?? guidance.value;
    fps.value = video.fps;
    tier.value = video.tier ?? "exact";
    negative_prompt.value = video.negative_prompt ?? "";
    this.seed = video.seed;
  }

  #tell() {
    const { size, num_frames, steps, guidance, fps, seed } = this.#byId;
    const seconds = (num_frames.value / (Number(fps.value) || 1)).toFixed(1);
    output("num_frames", `${num_frames.value} frames, ${seconds} s`);
    output("steps", steps.value);
    output("guidance", Number(guidance.value).toFixed(2).replace(/\.?0+$/, ""));
    this.#summary.textContent = `${size.value.replace("x", " × ")}, ${seconds} s, seed ${seed.value || "drawn"}`;
  }
}

function output(name, text) {
  document.getElementById(`${name}-out`).textContent = text;
}

function range(input, min, max, step, value) {
  Object.assign(input, { min, max, step });
  input.value = value;
}

// The default size first, then the largest of each shape that the model takes.
function sizes(bound, usual) {
  const found = [[usual.width, usual.height], [usual.height, usual.width], ...SHAPES.map((shape) => largest(shape, bound))];
  const seen = new Set();
  return found.filter(([width, height]) => {
    const key = `${width}x${height}`;
    return width >= bound.min_side && height >= bound.min_side && !seen.has(key) && seen.add(key);
  });
}

function largest([across, down], { size_multiple: grid, max_side, max_pixels }) {
  const unit = Math.min(max_side / Math.max(across, down), Math.sqrt(max_pixels / (across * down)));
  return [across, down].map((side) => Math.floor((side * unit) / grid) * grid);
}
