// The table, provenance, what the switches do, and the start of it all.

// Table ---------------------------------------------------------------------------------------------------------------

const COLUMNS = [
  { name: "Sampler", value: (row) => row.label, words: true },
  { name: "Kind", value: kindText, words: true, also: "kind" },
  { name: "Calls", value: (row) => row.calls },
  { name: "Counted", about: "calls made", value: (row) => row.nfe, text: short, shown: (row) => row.nfe !== row.calls },
  ...data.metrics.map((metric) => ({
    name: metric.key, about: `${metric.better} is better`, metric, down: metric.better === "higher",
    value: (row) => row.scores[metric.key]?.value,
  })),
  { name: "Latency", about: "per image", value: (row) => row.seconds_per_image, text: duration },
  { name: "Training", about: "time", value: (row) => row.cost?.seconds, text: duration },
  { name: "Training", about: "images", value: (row) => row.cost?.images, text: (count) => count.toLocaleString("en") },
  { name: "Training", about: "calls", value: (row) => row.cost?.calls, text: (count) => count.toLocaleString("en") },
].filter(({ value, shown = (row) => given(value(row)) }) => data.rows.some(shown));

function kindText(row) {
  return { best: "★ teacher", solver: "solver", student: `student${row.method ? `, ${row.method}` : ""}` }[row.kind];
}

const classes = ({ words, also }) => [words && "words", also].filter(Boolean).join(" ") || null;

function makeTable() {
  const head = (column) => {
    const [name, ...extractor] = column.name.split(/(?=\[)/); // a line may end before it
    const label = [el("span", { class: "arrow" }, name, extractor.flatMap((part) => [el("wbr"), part])), el("small", {}, column.about ?? "\u00a0")];
    const button = el("button", { type: "button", onclick: () => sortBy(column) }, label);
    return (column.head = el("th", { scope: "col", class: classes(column) }, button));
  };
  find("table").querySelector("thead").append(el("tr", {}, COLUMNS.map(head)));
  sortBy(COLUMNS.find((column) => column.name === "Calls"));
}

function sortBy(column) {
  const before = column.head.getAttribute("aria-sort");
  const down = before ? before === "ascending" : Boolean(column.down);
  for (const { head } of COLUMNS) head.removeAttribute("aria-sort");
  column.head.setAttribute("aria-sort", down ? "descending" : "ascending");
  find("table").querySelector("tbody").replaceChildren(...sorted(column, down).map(tableRow));
}

/** Rows without a value come last in either direction; equal ones keep the order of the results. */
function sorted({ value }, down) {
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const [known, unknown] = [true, false].map((wanted) => data.rows.filter((row) => given(value(row)) === wanted));
  return [...known.sort((a, b) => compare(value(a), value(b)) * (down ? -1 : 1)), ...unknown];
}

function tableRow(row) {
  const cell = (column, index) => {
    if (!index) return el("th", { scope: "row" }, swatch(lineOf.get(row)), ` ${row.label}`);
    const value = column.value(row);
    if (!given(value)) return el("td", {}, "–");
    if (column.metric) return scoreCell(row, column.metric);
    return el("td", { class: classes(column) }, (column.text ?? String)(value));
  };
  return el("tr", { class: `${row.kind}-row` }, COLUMNS.map(cell));
}

/** The best of some scores; none where real images do not beat it by more than its spread, since the rest is noise. */
function winner(scores, { better: direction, floor }) {
  const sign = direction === "lower" ? 1 : -1;
  const best = scores.reduce((first, score) => (sign * score.value < sign * first.value ? score : first));
  const clear = !floor || sign * (best.value - floor.value) > (best.spread ?? 0);
  return scores.length > 1 && clear ? best.value : null;
}

/** Spaces as wide as the missing digits keep the decimal points of a column below one another. */
function scoreCell(row, metric) {
  const { key } = metric;
  const score = row.scores[key];
  const measured = data.rows.filter((other) => other.scores[key]);
  const scores = measured.map((other) => other.scores[key]);
  const missing = Math.max(...scores.map(decimals)) - decimals(score);
  const padding = (missing && !decimals(score) ? "\u2008" : "") + "\u2007".repeat(missing);
  const rivals = measured.filter((other) => other.calls === row.calls).map((other) => other.scores[key]);
  const value = el("span", { class: score.value === winner(rivals, metric) ? "winner" : null }, valueText(score));
  const spread = el("span", { class: "spread" }, spreadText(score));
  return el("td", {}, value, padding, scores.some((other) => given(other.spread)) ? spread : null);
}

// Provenance ----------------------------------------------------------------------------------------------------------

function described(value) {
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) return value.join(", ");
  return value === null || typeof value !== "object" ? String(value ?? "–") : el("dl", {}, entries(value));
}

function entries(values) {
  return Object.entries(values).flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, described(value))]);
}

function command(text) {
  const shown = el("pre", {}, text);
  const button = el("button", { type: "button", class: "button", onclick: () => copy(text, shown, button) }, "Copy");
  return el("div", { class: "command" }, shown, button);
}

/** Where a file may not use the clipboard, the text is selected and copied as a reader would. */
async function copy(text, shown, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(shown);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => button.replaceChildren("Copy"), 1500);
}

const ended = (sentence) => sentence.replace(/\.?$/, ".");

function drawProvenance() {
  const { commands, ...rest } = data.provenance;
  const about = ({ key, name, about: text, floor, better: direction }) => {
    const [good, word] = direction === "lower" ? ["Lower", "Floor"] : ["Higher", "Ceiling"];
    const reached = floor ? ` ${word} ${floorText(floor)}: ${ended(floor.about)}` : "";
    return [key, `${name}: ${ended(text)} ${good} is better.${reached}`];
  };
  const known = Object.fromEntries(data.metrics.map(about));
  const { published } = data;
  if (published) known.published =
    `${published.title}: ${published.source}. Of ${publishedImages()}; drawn with ${published.metric}.`;
  find("metrics").append(...entries(known));
  if (commands.length) find("commands").append(el("h3", {}, "Commands"), ...commands.map(command));
  const image = `${WIDTH} × ${HEIGHT}, ${data.image.channels} channel${data.image.channels === 1 ? "" : "s"}`;
  const { made, count, shown, seed } = data;
  const facts = { made, took: duration(data.seconds), "images a row": count, "images shown": shown, seed, image };
  find("made").append(...entries({ ...facts, ...rest }));
}

// The page ------------------------------------------------------------------------------------------------------------

const drawCharts = () => Object.keys(CHARTS).forEach(drawChart);

function drawLegend() {
  const button = (line) => {
    const [alone, all] = [() => dimAllBut(line.key), () => dimAllBut()];
    const highlight = { onpointerenter: alone, onpointerleave: all, onfocus: alone, onblur: all };
    const pressed = { type: "button", "aria-pressed": String(!state.hidden.has(line.key)) };
    const click = (event) => toggle(line, event.currentTarget);
    return el("button", { ...pressed, ...highlight, onclick: click }, swatch(line), line.name);
  };
  find("legend").replaceChildren(...lines.filter(isDrawn).map(button));
}

function toggle(line, button) {
  if (!state.hidden.delete(line.key)) state.hidden.add(line.key);
  button.setAttribute("aria-pressed", String(!state.hidden.has(line.key)));
  drawCharts();
}

function chooseMetric(metric) {
  state.metric = metric;
  const values = data.rows.filter(scoreOf).map((row) => scoreOf(row).value);
  const wide = metric.better === "lower" && Math.max(...values) > 10 * Math.min(...values);
  find("log").disabled = Math.min(...values) <= 0;
  find("log").checked = state.log = wide && !find("log").disabled;
  find("summary").replaceChildren(...summary());
  const beside = data.published?.metric === metric.key
    ? ` Hollow marks are published, of ${publishedImages()}; the others are of ${data.count.toLocaleString("en")}.` : "";
  find("metric-about").textContent = `${metric.name}, ${metric.key}: ${ended(metric.about)}${beside}`;
  panels.forEach((panel) => panel.refresh());
  drawLegend();
  drawCharts();
}

function listenToSwitches() {
  find("metric").addEventListener("change", (event) => chooseMetric(data.metrics[event.target.selectedIndex]));
  find("log").addEventListener("change", (event) => { state.log = event.target.checked; drawCharts(); });
  find("path").addEventListener("change", (event) => choosePath(event.target.value));
  find("cost").addEventListener("change", (event) => { state.unit = event.target.value; drawChart("cost"); });
  let width = find("main").clientWidth;
  new ResizeObserver(() => { if (width !== (width = find("main").clientWidth)) fit(); }).observe(find("main"));
}

function fit() {
  drawCharts();
  fitPanels();
  fitStrips();
}

function start() {
  const first = leader();
  find("metric").append(...data.metrics.map(({ name, key }) => el("option", {}, `${name}, ${key}`)));
  const made = `Made ${data.made.slice(0, 10)} in ${duration(data.seconds)}.`;
  find("facts").textContent = `${data.count} images a row from the same noise, seed ${data.seed}. ${made}`;
  makeCloser();
  panels.push(new Panel("A", first), new Panel("B", ofKind("best")[0] ?? bestSolver(first.calls, first.teacher) ?? first));
  fitPanels();
  chooseNoise(0);
  chooseMetric(data.metrics[0]);
  drawStrips("interpolations", () => null, evenness);
  drawStrips("trajectories", sigmas, () => null);
  choosePath(find("path").value);
  makeTable();
  drawProvenance();
  const link = ({ id, firstElementChild }) => el("li", {}, el("a", { href: `#${id}` }, firstElementChild.textContent));
  find("sections").append(...[...document.querySelectorAll("main > section:not([hidden])")].map(link));
  listenToSwitches();
}

start();
