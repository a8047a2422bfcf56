// Charts: the chosen metric against calls, the cost of training, and latency. Hover, touch and arrow keys tell values.

const CHARTS = {
  calls: {
    x: (row) => row.calls,
    label: () => "network calls per image",
    format: String,
    lines: true,
    log: (values) => Math.max(...values) >= 8 * Math.min(...values),
    ticks: (scale, gap, values) => {
      const occurring = [...new Set(values)].sort((a, b) => a - b);
      return fullest([occurring, occurring.filter((calls) => Number.isInteger(Math.log2(calls)))], scale, gap / 3);
    },
  },
  cost: {
    x: (row) => row.cost?.[state.unit],
    free: (row) => row.kind !== "student",
    label: () => ({ seconds: "training time", images: "images of training", calls: "calls of training" })[state.unit],
    format: (value) => (state.unit === "seconds" ? duration(value) : short(value)),
    log: () => true,
    ticks: (scale, gap) => (state.unit === "seconds" ? timeTicks : numberTicks)(scale, gap),
  },
  latency: {
    x: (row) => row.seconds_per_image,
    label: () => "time per image",
    format: duration,
    lines: true,
    log: () => true,
    ticks: timeTicks,
  },
};

// Scales --------------------------------------------------------------------------------------------------------------

function makeScale(values, log, from, to) {
  const bend = log ? Math.log10 : Number;
  const [least, most] = [bend(Math.min(...values)), bend(Math.max(...values))];
  const room = Math.max(most - least, log ? 0.4 : Math.abs(most) * 0.1 || 1) * 1.1;
  let [low, high] = [(least + most - room) / 2, (least + most + room) / 2];
  if (!log && least >= 0 && low < high / 4) low = 0;
  const place = (value) => (log && value <= 0 ? from : from + ((bend(value) - low) / (high - low)) * (to - from));
  const inside = (value) => bend(value) >= low - 1e-9 && bend(value) <= high + 1e-9;
  return { place, inside, low, high, log };
}

/** The first of several sets of ticks, fuller ones first, whose neighbours are at least `gap` pixels apart. */
function fullest(sets, scale, gap) {
  const apart = (tick, index, all) => !index || Math.abs(scale.place(tick) - scale.place(all[index - 1])) >= gap;
  const shown = sets.map((ticks) => ticks.filter(scale.inside));
  return shown.find((ticks) => ticks.length > 1 && ticks.every(apart)) ?? shown.findLast((ticks) => ticks.length) ?? [];
}

const range = (first, last) => Array.from({ length: Math.max(last - first + 1, 0) }, (_, index) => first + index);

function numberTicks(scale, gap) {
  if (!scale.log) return fullest(stepTicks(scale), scale, gap);
  const powers = range(Math.floor(scale.low), Math.ceil(scale.high)).map((power) => 10 ** power);
  const times = (digits) => powers.flatMap((power) => digits.map((digit) => digit * power));
  const within = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]].map(times);
  return fullest([...within, ...[2, 4, 8].map((step) => powers.filter((_, index) => index % step === 0))], scale, gap);
}

function stepTicks({ low, high }) {
  const power = 10 ** (Math.floor(Math.log10(high - low)) - 1);
  return [1, 2, 5, 10, 20, 50].map((digit) =>
    range(Math.ceil(low / (digit * power)), Math.floor(high / (digit * power))).map((step) => step * digit * power));
}

const [MINUTE, HOUR, DAY] = [60, 3600, 86400];
const TIMES = [
  [...[1, MINUTE].flatMap((unit) => [1, 2, 5, 10, 20, 30].map((n) => n * unit)), HOUR, 2 * HOUR, 5 * HOUR, DAY],
  [1, 5, 15, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 5 * HOUR, DAY, 5 * DAY],
  [1, 10, MINUTE, 10 * MINUTE, HOUR, 10 * HOUR, DAY, 10 * DAY],
  [1, MINUTE, HOUR, DAY],
];

function timeTicks(scale, gap) {
  return 10 ** scale.high < MINUTE ? numberTicks(scale, gap) : fullest(TIMES, scale, gap);
}

// A chart -------------------------------------------------------------------------------------------------------------

/** The points of the lines that are shown; x is null for what costs no training. */
function pointsOf(chart) {
  const known = lines.filter((line) => !state.hidden.has(line.key) && isDrawn(line));
  const published = chart === CHARTS.calls ? known.flatMap((line) =>
    line.points.map(([x, value]) => ({ line, x, score: { value, spread: null } }))) : [];
  const measured = known.flatMap((line) => line.rows.filter(scoreOf).map((row) =>
    ({ line, row, x: chart.free?.(row) ? null : chart.x(row), score: scoreOf(row) })));
  return [...measured.filter(({ x }) => x === null || x > 0), ...published]
    .filter(({ score }) => !state.log || score.value > 0);
}

const isDrawn = (line) => line.kind !== "published" || data.published.metric === state.metric.key;

function drawChart(name) {
  const [chart, figure] = [CHARTS[name], find(`chart-${name}`)];
  figure.querySelector("svg")?.remove();
  figure.hidden = !data.rows.some((row) => chart.x(row) > 0);
  const points = figure.hidden ? [] : pointsOf(chart);
  if (!points.some(({ x }) => x !== null)) return;
  const width = Math.max(figure.clientWidth, 280);
  const frame = { left: 46, right: width - 12, top: 26, bottom: clamp(width * 0.42, 270, 420), width };
  const y = verticalScale(points, frame);
  const x = horizontalScale(chart, points, frame);
  for (const point of points) Object.assign(point, { px: x.place(point), py: y.place(point.score.value) });
  points.sort((a, b) => a.px - b.px || a.py - b.py);
  const drawn = el("svg", {
    viewBox: `0 0 ${width} ${frame.bottom + 44}`, tabindex: 0, role: "group", "aria-roledescription": "chart",
    "aria-label": `${state.metric.name} against ${chart.label()}, ${points.length} points; arrow keys go through them`,
  });
  drawn.append(...axes(chart, frame, x, y), ...references(frame, x, y), ...gains(chart, points, y));
  drawn.append(...traces(points, chart, y, frame), ...names(points, frame));
  figure.querySelector("figcaption").after(drawn);
  listen(drawn, points, chart);
}

function verticalScale(points, frame) {
  const { floor } = state.metric;
  const teacher = bestOf(ofKind("best"));
  const bars = points.flatMap(({ score: { value, spread } }) => [value, value - spread, value + spread]);
  const marks = [...bars, ...(floor ? [floor.low, floor.high] : []), ...(teacher ? [scoreOf(teacher).value] : [])];
  return makeScale(state.log ? marks.filter((value) => value > 0) : marks, state.log, frame.bottom, frame.top);
}

/** What needs no training stands in a band at the left of the costs, in the order of its calls. */
function horizontalScale(chart, points, { left, right }) {
  const free = points.filter((point) => point.x === null).map((point) => point.row.calls);
  const values = points.filter((point) => point.x !== null).map((point) => point.x);
  const edge = free.length ? left + (right - left) * 0.28 : left;
  const band = free.length ? makeScale(free, true, left + 8, edge - 8) : null;
  const scale = makeScale(values, chart.log(values), band ? edge + 16 : left, right);
  return { band, scale, edge, values, place: ({ x, row }) => (x === null ? band.place(row.calls) : scale.place(x)) };
}

function axes(chart, { left, right, top, bottom }, x, y) {
  const across = (at) => el("line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
  const notch = (at) => el("line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + 4 });
  const under = (at, text) => el("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, text);
  const beside = (at, text) => el("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, text);
  const band = el("rect", { class: "free", x: left, y: top, width: x.edge - left, height: bottom - top });
  return [
    ...(x.band ? [band, under((left + x.edge) / 2, "no training")] : []),
    ...numberTicks(y, 26).flatMap((value) => [across(y.place(value)), beside(y.place(value), short(value))]),
    el("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    ...chart.ticks(x.scale, 50, x.values).flatMap((value) =>
      [notch(x.scale.place(value)), under(x.scale.place(value), chart.format(value))]),
    el("text", { class: "name", x: (x.edge + right) / 2, y: bottom + 38, "text-anchor": "middle" }, chart.label()),
    el("text", { class: "name", x: 0, y: 12 }, `${state.metric.key}, ${state.metric.better} is better`),
  ];
}

/** The floor as a band with a line, and the teacher at its best as a line; both are labelled on their better side, the
    latter where its own mark does not stand. */
function references({ left, right, top, bottom, width }, x, y) {
  const { floor } = state.metric;
  const teacher = bestOf(ofKind("best"));
  const across = (at, kind) => el("line", { class: kind, x1: left, x2: right, y1: at, y2: at });
  const beside = (value) => clamp(y.place(value) + (state.metric.better === "lower" ? 15 : -6), top + 11, bottom - 4);
  const label = (at, text, place) => el("text", { class: "halo", y: at, ...place }, text);
  const band = ({ low, high }) => {
    const height = Math.max(y.place(low) - y.place(high), 1);
    return el("rect", { class: "floor", x: left, width: right - left, y: y.place(high), height });
  };
  const below = floor && state.log && floor.value <= 0;
  const best = teacher && `teacher at its best, ${callsText(teacher.calls)}`;
  const text = floor && `${floorWord()} ${floorText(floor)}${below ? ", below this scale" : ""}`;
  const low = floor && beside(floor.value);
  let high = teacher && beside(scoreOf(teacher).value);
  if (floor && teacher && width < 480 && Math.abs(high - low) < 14) high = low + (low > top + 30 ? -14 : 14);
  return [
    ...(floor ? [band(floor), below ? null : across(y.place(floor.value), "floor-line")] : []),
    ...(floor ? [label(low, text, { x: right - 4, "text-anchor": "end" })] : []),
    ...(teacher ? [across(y.place(scoreOf(teacher).value), "reference")] : []),
    ...(teacher ? [label(high, best, { x: x.edge + 5 })] : []),
  ].filter(given);
}

/** What training bought: from the best solver with a student's calls to the student. */
function gains(chart, points, y) {
  return points.filter((point) => chart.free && point.x !== null).flatMap(({ px, py, row, line }) => {
    const solver = bestSolver(row.calls, row.teacher);
    const from = solver ? y.place(scoreOf(solver).value) : py;
    const path = `M${px - 5},${from}h10M${px},${from}V${py}`;
    return el("path", { class: `gain ${line.hue}`, d: path, "data-line": line.key });
  });
}

function traces(points, chart, y, { top, bottom }) {
  const whisker = ({ px, score: { value, spread } }) => {
    const [low, high] = [value - spread, value + spread].map((end) => clamp(y.place(end), top, bottom));
    return el("path", { class: "whisker", d: `M${px - 4},${high}h8M${px},${high}V${low}M${px - 4},${low}h8` });
  };
  const dot = (point) => (point.mark = marker(point.line, point.px, point.py));
  return lines.toReversed().map((line) => {
    const own = points.filter((point) => point.line === line);
    const path = chart.lines ? `M${own.map(({ px, py }) => `${px},${py}`).join("L")}` : "";
    const trace = el("path", { class: "trace", d: own.length > 1 ? path : "", "stroke-dasharray": line.dash });
    const bars = own.filter((point) => point.score.spread).map(whisker);
    return el("g", { class: `${line.kind} ${line.hue}`, "data-line": line.key }, trace, bars, own.map(dot));
  });
}

/** Names at the ends of students' and published lines, where there is room; each gives way to those above it. */
function names(points, { right, width }) {
  const ends = lines.map((line) => points.findLast((point) => point.line === line)).filter(given);
  const named = ends.filter(({ line }) => ["student", "published"].includes(line.kind)).sort((a, b) => a.py - b.py);
  if (width < 480 || named.length > 8) return [];
  const placed = [];
  return named.map(({ px, py, line }) => {
    const long = 6.6 * line.name.length;
    const left = px + 10 + long > right ? px - 10 - long : px + 10;
    let at = py + 4;
    const beside = (other) => left < other.left + other.long && other.left < left + long;
    const clash = () => placed.find((other) => beside(other) && Math.abs(other.at - at) < 14);
    while (clash()) at = clash().at + 14;
    placed.push({ at, left, long });
    const anchor = left < px ? { x: px - 10, "text-anchor": "end" } : { x: left };
    return el("text", { class: "name halo", y: at, "data-line": line.key, ...anchor }, line.name);
  });
}

// Hover and keys ------------------------------------------------------------------------------------------------------

function listen(drawn, points, chart) {
  let chosen = -1;
  const choose = (index) => {
    chosen = index;
    points.forEach((point, place) => point.mark.classList.toggle("chosen", place === index));
    dimAllBut(points[index]?.line.key);
    find("tip").hidden = index < 0;
    if (index >= 0) showTip(drawn, points[index], chart);
  };
  const open = () => points[chosen]?.row && showInPanel(points[chosen].row);
  const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -points.length, End: points.length };
  const keys = (event) => {
    if (event.key === "Escape") choose(-1);
    if (event.key === "Enter") open();
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(clamp(chosen + moves[event.key], 0, points.length - 1));
    find("spoken").textContent = tipText(points[chosen], chart).join(", ");
  };
  const click = (event) => {
    const under = pointUnder(event, drawn, points);
    if (under === chosen) open(); // a finger chooses first and opens with its second touch
    else choose(under);
  };
  const hover = (index) => (event) => event.pointerType === "mouse" && choose(index(event));
  drawn.addEventListener("pointermove", hover((event) => pointUnder(event, drawn, points)));
  drawn.addEventListener("pointerleave", hover(() => -1));
  drawn.addEventListener("blur", () => choose(-1));
  drawn.addEventListener("click", click);
  drawn.addEventListener("keydown", keys);
}

function pointUnder(event, drawn, points) {
  const box = drawn.getBoundingClientRect();
  const zoom = drawn.viewBox.baseVal.width / box.width;
  const [x, y] = [(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom];
  const distances = points.map(({ px, py }) => Math.hypot(px - x, py - y));
  const least = Math.min(...distances);
  return least < 32 ? distances.indexOf(least) : -1;
}

function dimAllBut(key) {
  for (const part of document.querySelectorAll("[data-line]")) {
    part.classList.toggle("faint", Boolean(key) && part.dataset.line !== key);
  }
}

function tipText({ line, row, x, score }, chart) {
  const value = `${state.metric.key} ${scoreText(score)}`;
  if (!row) return [line.name, value, callsText(x), `of ${publishedImages()}`, data.published.source];
  if (chart === CHARTS.calls) return [row.label, value];
  return [row.label, value, x === null ? "no training" : `${chart.format(x)}, ${chart.label()}`];
}

function showTip(drawn, point, chart) {
  const [tip, box] = [find("tip"), drawn.getBoundingClientRect()];
  const [title, ...rest] = tipText(point, chart);
  tip.replaceChildren(el("b", {}, title), ...rest.map((text) => el("div", {}, text)));
  if (point.row) tip.append(preview(point.row), el("div", { class: "quiet" }, "Select to show in A"));
  const zoom = box.width / drawn.viewBox.baseVal.width;
  const [x, y] = [box.left + point.px * zoom, box.top + point.py * zoom];
  const above = y - tip.offsetHeight - 14;
  tip.style.left = `${clamp(x + 14, 8, document.documentElement.clientWidth - tip.offsetWidth - 8) + scrollX}px`;
  tip.style.top = `${(above > 56 ? above : y + 18) + scrollY}px`;
}
