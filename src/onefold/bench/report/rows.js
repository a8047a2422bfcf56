// What is compared: rows, the lines they belong to, how their numbers are written, and the summary.
// Nothing is loaded and nothing is sent; text is only ever set as text.

const data = JSON.parse(document.getElementById("results").textContent);
const state = { metric: data.metrics[0], log: true, unit: "seconds", hidden: new Set(), noise: 0 };

const KINDS = { student: "Students", solver: "Solvers", best: "Teacher’s best" };
const HUES = { student: 3, solver: 4, best: 1, published: 1 }; // colours a kind has in the style
const DASHES = [null, "7 3", "2 3"];
const SHAPES = {
  circle: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
  square: "M-3.6,-3.6h7.2v7.2h-7.2z",
  up: "M0,-4.8L4.6,3.4H-4.6z",
  down: "M0,4.8L4.6,-3.4H-4.6z",
  plus: "M-1.6,-4.8h3.2v3.2h3.2v3.2h-3.2v3.2h-3.2v-3.2h-3.2v-3.2h3.2z",
  diamond: "M0,-7L5.5,0L0,7L-5.5,0z",
  pentagon: "M0,-6L5.8,-1.6L3.6,5.2H-3.6L-5.8,-1.6z",
  star: "M0,-7L1.9,-2.3L7,-2.2L2.9,0.9L4.3,5.8L0,3L-4.3,5.8L-2.9,0.9L-7,-2.2L-1.9,-2.3z",
};
const MARKS = {
  student: ["diamond", "pentagon"],
  solver: ["circle", "square", "up", "down", "plus"],
  best: ["star"],
  published: ["circle", "square", "up", "down", "plus"],
};

// Elements ------------------------------------------------------------------------------------------------------------

const find = (id) => document.getElementById(id);
const given = (value) => value !== null && value !== undefined;
const DRAWN = new Set(["svg", "g", "path", "line", "text", "rect"]);

/** An element with attributes, listeners (`onclick`) and children; what is null is left out. */
function el(name, attributes = {}, ...children) {
  const space = DRAWN.has(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else if (given(value) && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter(given));
  return node;
}

const marker = (line, x, y) => el("path", { class: "dot", d: SHAPES[line.shape], transform: `translate(${x},${y})` });

function swatch(line) {
  const trace = el("path", { class: "trace", d: "M0,8H28", "stroke-dasharray": line.dash });
  const look = { width: 28, height: 16, class: `${line.kind} ${line.hue}`, "aria-hidden": "true" };
  return el("svg", look, line.kind === "best" ? null : trace, marker(line, 14, 8));
}

// Numbers -------------------------------------------------------------------------------------------------------------

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const callsText = (calls) => `${calls} call${calls === 1 ? "" : "s"}`;

function short(value) {
  if (Math.abs(value) < 1e4) return String(Number(value.toPrecision(3)));
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" }).format(value);
}

/** Decimals of a value: as many as its spread knows, where there is none three significant digits. */
function decimals({ value, spread }) {
  const size = (number) => Math.floor(Math.log10(Math.abs(number)));
  const known = spread / 10 ** size(spread) < 2.95 ? 1 : 0; // a second digit behind a leading 1 or 2
  return clamp(spread ? known - size(spread) : 2 - size(value || 1), 0, 6);
}

const valueText = (score) => score.value.toFixed(decimals(score));
const spreadText = (score) => (given(score.spread) ? `± ${score.spread.toFixed(decimals(score))}` : "");
const scoreText = (score) => `${valueText(score)} ${spreadText(score)}`.trim();
const publishedImages = () => `${data.published.images.toLocaleString("en")} images`;
/** Of how many real images, where that is another number than the rows'. */
const floorText = ({ value, count }) =>
  valueText({ value, spread: null }) + (count === data.count ? "" : ` (of ${count.toLocaleString("en")})`);

function duration(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"], [1e-6, "µs"]];
  const [size, unit] = units.find(([least]) => seconds >= least) ?? units.at(-1);
  return `${short(seconds / size)} ${unit}`;
}

// Rows and lines ------------------------------------------------------------------------------------------------------

const scoreOf = (row) => row.scores[state.metric.key];
const ofKind = (kind) => data.rows.filter((row) => row.kind === kind);
const better = (a, b) => (state.metric.better === "lower" ? a.value < b.value : a.value > b.value);
const floorWord = () => (state.metric.better === "lower" ? "floor" : "ceiling");

/** The best of some rows by the chosen metric; null where none has a value. */
function bestOf(rows) {
  const known = rows.filter(scoreOf);
  return known.reduce((best, row) => (better(scoreOf(row), scoreOf(best)) ? row : best), known[0] ?? null);
}

function nearest(rows, calls) {
  const distance = (row) => Math.abs(Math.log(row.calls / calls));
  return rows.reduce((best, row) => (distance(row) < distance(best) ? row : best));
}

/** Of a teacher's solvers, where it is said whose they are: a student's control is its own teacher. */
const bestSolver = (calls, teacher) =>
  bestOf(ofKind("solver").filter((row) => row.calls === calls && (!teacher || (row.teacher ?? teacher) === teacher)));

/** Rows of one series are one line; its colour, marker and dash together are its own. */
function makeLine(kind, name, index, content) {
  const shape = MARKS[kind][index % MARKS[kind].length];
  const dash = kind === "published" ? "1 4" : DASHES[Math.floor(index / HUES[kind]) % DASHES.length];
  return { kind, name, key: `${kind} ${name}`, hue: `${kind}-${index % HUES[kind]}`, shape, dash, ...content };
}

function makeLines() {
  const measured = Object.keys(KINDS).flatMap((kind) => {
    const names = [...new Set(ofKind(kind).map((row) => row.series))];
    const rows = (name) => ofKind(kind).filter((row) => row.series === name).sort((a, b) => a.calls - b.calls);
    return names.map((name, index) => makeLine(kind, name, index, { rows: rows(name), points: [] }));
  });
  const published = (data.published?.series ?? []).map(({ label, points }, index) =>
    makeLine("published", `${label}, published`, index, { rows: [], points }));
  return [...measured, ...published];
}

const lines = makeLines();
const lineOf = new Map(lines.flatMap((line) => line.rows.map((row) => [row, line])));

/** What a panel can show of a kind: its lines, and before them the best of all at each number of calls. */
function choicesOf(kind) {
  const own = lines.filter((line) => line.kind === kind);
  if (own.length < 2) return own;
  const calls = [...new Set(ofKind(kind).map((row) => row.calls))].sort((a, b) => a - b);
  const same = (count) => ofKind(kind).filter((row) => row.calls === count);
  const rows = calls.map((count) => bestOf(same(count)) ?? same(count)[0]);
  return [{ kind, key: kind, name: `best ${kind} at each number of calls`, rows }, ...own];
}

// Summary -------------------------------------------------------------------------------------------------------------

/** The row to look at first: the best student, otherwise the best solver at about four calls. */
function leader() {
  const solvers = ofKind("solver");
  const solver = solvers.length ? bestSolver(nearest(solvers, 4).calls) : null;
  return bestOf(ofKind("student")) ?? solver ?? bestOf(data.rows) ?? data.rows[0];
}

function summary() {
  const [first, teacher, floor] = [leader(), bestOf(ofKind("best")), state.metric.floor];
  const value = (row) => el("strong", {}, scoreText(scoreOf(row)));
  if (!scoreOf(first)) return [`No row has a value of ${state.metric.name}.`];
  const parts = [];
  if (first.kind !== "best") parts.push([`At ${callsText(first.calls)} `, ...leading(first, value)]);
  if (teacher) parts.push([`the teacher at its best (${callsText(teacher.calls)}) is at `, value(teacher)]);
  if (floor) parts.push([`the ${floorWord()} is `, el("strong", {}, floorText(floor))]);
  const sentence = parts.flatMap((part, index) => (index ? ["; ", ...part] : part));
  sentence[0] = sentence[0][0].toUpperCase() + sentence[0].slice(1);
  return [...sentence, `. ${state.metric.name}, ${state.metric.better} is better.`];
}

function leading(first, value) {
  if (first.kind === "solver") return [`the best solver, ${first.series}, is at `, value(first)];
  const solver = bestSolver(first.calls, first.teacher);
  const control = solver ? [`, the best solver (${solver.series}) at `, value(solver)] : [];
  return [`the student ${first.model} is at `, value(first), ...control];
}
