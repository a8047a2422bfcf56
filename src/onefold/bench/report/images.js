// Images of the same noise side by side, strips of interpolations and trajectories.

// Pictures ------------------------------------------------------------------------------------------------------------

const { width: WIDTH, height: HEIGHT } = data.image;
const decoded = new Map();
const address = (name) => `data:image/png;base64,${data.pictures[name]}`;
const imageCanvas = (across = 1) => el("canvas", { width: across * WIDTH, height: HEIGHT });

/** A picture, decoded when it is first looked at. */
function sprite(name) {
  if (!decoded.has(name)) {
    const image = el("img", { src: address(name) });
    decoded.set(name, image.decode().then(() => image));
  }
  return decoded.get(name);
}

function drawTile(canvas, image, index) {
  const columns = image.naturalWidth / WIDTH;
  const [x, y] = [(index % columns) * WIDTH, Math.floor(index / columns) * HEIGHT];
  canvas.getContext("2d").drawImage(image, x, y, WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT);
}

/** CSS pixels of an image's side: whole factors of the screen's pixels stay even, unless they waste much room. */
function sideFor(room) {
  const whole = (Math.floor((room * devicePixelRatio) / WIDTH) * WIDTH) / devicePixelRatio;
  return whole > 0.75 * room ? whole : room;
}

/** The first images of a row, for a tip. */
function preview(row) {
  const canvas = imageCanvas(Math.min(8, data.shown));
  sprite(row.picture).then((image) => canvas.getContext("2d").drawImage(image, 0, 0));
  return canvas;
}

// Panels --------------------------------------------------------------------------------------------------------------

const panels = [];
const narrow = matchMedia("(max-width: 42rem)"); // as in the style
const columns = () => Math.min(narrow.matches ? 4 : 8, data.shown);

/** Tiles as large as two panels allow; beside one another they leave 8rem for what is enlarged between them. */
function fitPanels() {
  const frame = find("compare");
  const room = (frame.clientWidth - (narrow.matches ? 12 : 168)) / 2;
  const side = sideFor((room - 2 * (columns() - 1)) / columns());
  frame.style.setProperty("--columns", columns());
  frame.style.setProperty("--side", `${side}px`);
}

class Panel {
  constructor(name, row) {
    this.section = find(`panel-${name.toLowerCase()}`);
    const label = (what) => ({ "aria-label": `${what} in ${name}` });
    const choose = () => this.move(this.choices[this.series.selectedIndex]);
    this.series = el("select", { ...label("Series"), onchange: choose });
    this.slider = el("input", { type: "range", min: 0, step: 1, ...label("Calls"), oninput: () => this.slide() });
    this.stops = el("div", { class: "stops", "aria-hidden": "true" });
    this.calls = el("output", {});
    this.caption = el("p", { class: "quiet small" });
    const tiles = range(0, data.shown - 1).map(makeTile);
    const walk = (event) => this.walk(event);
    this.tiles = el("div", { class: "tiles", role: "group", ...label("Images"), onkeydown: walk }, tiles);
    const kinds = Object.keys(KINDS).filter((kind) => ofKind(kind).length).map((kind) => this.radio(kind, name));
    this.section.append(
      el("fieldset", { class: "kinds" }, el("legend", { class: "unseen" }, `What ${name} shows`), kinds), this.series,
      el("div", { class: "slide" }, el("div", {}, this.slider, this.stops), this.calls), this.tiles, this.caption,
    );
    this.show(row, choicesOf(row.kind)[0]);
  }

  radio(kind, name) {
    const like = () => (find("together").checked ? this.other : this).row.calls;
    const choose = () => this.move(choicesOf(kind)[0], like());
    const input = el("input", { type: "radio", name: `kind-${name}`, value: kind, onchange: choose });
    return el("label", {}, input, KINDS[kind]);
  }

  /** To another line, or as many calls as another panel has, as near as there is. */
  move(line, calls = this.row.calls) {
    this.show(nearest(line.rows, calls), line);
  }

  slide() {
    this.show(this.line.rows[this.slider.valueAsNumber], this.line);
    if (find("together").checked) this.other.move(this.other.line, this.row.calls);
  }

  get other() {
    return panels.find((panel) => panel !== this);
  }

  async show(row, line) {
    Object.assign(this, { row, line, choices: choicesOf(row.kind) });
    this.control();
    this.describe();
    this.tiles.setAttribute("aria-busy", "true");
    const image = await sprite(row.picture);
    if (this.row !== row) return; // another row was chosen meanwhile
    this.image = image;
    [...this.tiles.children].forEach((tile, index) => drawTile(tile.firstChild, image, index));
    this.tiles.setAttribute("aria-busy", "false");
    drawCloser();
  }

  control() {
    const { row, line, slider } = this;
    this.section.querySelector(`input[value=${row.kind}]`).checked = true;
    const option = ({ key, name }) => el("option", { selected: key === line.key }, name);
    this.series.replaceChildren(...this.choices.map(option));
    slider.max = line.rows.length - 1;
    slider.value = line.rows.indexOf(row);
    slider.disabled = line.rows.length === 1;
    slider.setAttribute("aria-valuetext", callsText(row.calls));
    this.stops.replaceChildren(...line.rows.map(({ calls }) => el("span", {}, calls)));
    this.calls.textContent = callsText(row.calls);
  }

  /** The best at each number of calls depends on the metric. */
  refresh() {
    const line = choicesOf(this.row.kind).find(({ key }) => key === this.line.key);
    if (line.rows.includes(this.row)) this.show(this.row, line);
    else this.move(line);
  }

  describe() {
    const score = scoreOf(this.row);
    const latency = this.row.seconds_per_image;
    const measured = score ? `${state.metric.key} ${scoreText(score)}` : "not measured";
    const timed = given(latency) ? `, ${duration(latency)} per image` : "";
    this.caption.replaceChildren(el("b", {}, this.row.label), el("br"), measured + timed);
  }

  walk(event) {
    const [down, all] = [columns(), data.shown];
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: down, ArrowUp: -down, Home: -all, End: all };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.tiles.children[clamp(state.noise + moves[event.key], 0, data.shown - 1)].focus();
  }
}

function makeTile(index) {
  const look = () => chooseNoise(index);
  const place = { type: "button", class: "tile", tabindex: -1, "aria-label": `Noise ${index + 1}` };
  return el("button", { ...place, onfocus: look, onpointerenter: look, onclick: look }, imageCanvas());
}

function chooseNoise(index) {
  for (const { tiles } of panels) {
    for (const [chosen, on] of [[state.noise, false], [index, true]]) {
      tiles.children[chosen].classList.toggle("same", on);
      tiles.children[chosen].tabIndex = on ? 0 : -1;
    }
  }
  state.noise = index;
  drawCloser();
}

function makeCloser() {
  const figures = ["A", "B", "|A − B|"].map((name) => el("figure", {}, el("figcaption", {}, name), imageCanvas()));
  find("closer").append(...figures);
}

/** Both images of the chosen noise, and where they differ. */
function drawCloser() {
  const canvases = [...find("closer").querySelectorAll("canvas")];
  panels.forEach(({ image }, index) => image && drawTile(canvases[index], image, state.noise));
  const pen = canvases[2].getContext("2d");
  for (const [operation, canvas] of [["copy", canvases[0]], ["difference", canvases[1]]]) {
    pen.globalCompositeOperation = operation;
    pen.drawImage(canvas, 0, 0);
  }
  find("noise").textContent = `Noise ${state.noise + 1} of ${data.shown}`;
}

function showInPanel(row) {
  panels[0].show(row, lineOf.get(row));
  find("images").scrollIntoView();
}

// Strips --------------------------------------------------------------------------------------------------------------

function drawStrips(name, head, foot) {
  const section = find(name);
  section.hidden = !data[name].length;
  const labels = new Map(data.rows.map((row) => [row.id, row.label]));
  section.querySelector(".strips").append(...data[name].map((strip) => {
    const label = labels.get(strip.row);
    const alt = `${label}: lines of ${strip.columns} images`;
    const image = el("img", { class: "pixels", src: address(strip.picture), decoding: "async", alt });
    const holder = el("div", { class: "holder" }, head(strip), image);
    holder.style.setProperty("--columns", strip.columns);
    const scroller = el("div", { class: "strip", tabindex: 0, role: "region", "aria-label": alt }, holder);
    const caption = el("figcaption", {}, el("b", {}, label));
    return el("figure", { "data-kind": strip.kind }, caption, scroller, foot(strip));
  }));
}

/** Images as large as a strip's place allows, so that only strips of many columns are scrolled. */
function fitStrips() {
  for (const holder of document.querySelectorAll(".holder")) {
    const columns = Number(holder.style.getPropertyValue("--columns"));
    const side = Math.max(sideFor(Math.min(holder.parentElement.clientWidth / columns, 56)), 28);
    holder.style.setProperty("width", `${columns * side}px`);
  }
}

function choosePath(kind) {
  for (const figure of document.querySelectorAll("#interpolations figure")) figure.hidden = figure.dataset.kind !== kind;
  fitStrips();
}

function evenness({ evenness: found }) {
  const times = (number) => `${number.toFixed(2)} times`;
  const told = found
    ? `path ${times(found.length)} as long as straight, largest step ${times(found.jump)} the mean`
    : "both ends give the same image";
  return el("p", { class: "quiet small" }, told);
}

const sigmas = (strip) =>
  el("div", { class: "sigmas" }, strip.sigmas.map((sigma) => el("span", {}, given(sigma) ? short(sigma) : "∞")));
