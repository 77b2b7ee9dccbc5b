// The heatmap: layers down, matrices across, embedding and head apart. It draws what
// Python worked out (colours, words, legend) and reports one thing back: the tensor
// that was selected. Every string is set as text, never as markup.

const PAGE = 10; // rows that PageUp and PageDown move by

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function render({ model, el }) {
  const root = element("div", "wbg");
  const body = element("div");
  // JupyterLab's command mode would take arrows and Enter for itself.
  root.dataset.lmSuppressShortcuts = "true";
  const tip = element("div", "wbg-tip");
  tip.setAttribute("role", "tooltip");
  const live = element("div", "wbg-live");
  live.setAttribute("aria-live", "polite");
  root.append(body, tip, live);
  el.append(root);

  let cells = []; // rows of cell elements, without the gaps
  let marker = null;
  let current = [0, 0]; // the one cell that Tab reaches

  const dataOf = new WeakMap();
  const selected = () => model.get("selected");

  function draw() {
    const view = model.get("view");
    const focused = root.contains(document.activeElement) && document.activeElement.getAttribute("role") === "gridcell";
    body.replaceChildren();
    cells = [];
    marker = null;
    hideTip();
    if (!view.rows || !view.rows.length) return;

    const grid = element("div", "wbg-grid");
    grid.setAttribute("role", "grid");
    grid.setAttribute("aria-label", view.title);
    // Groups of matrices (attention, feed-forward) stand a little apart: an empty track before each but the first.
    const starts = view.columns.map((column, i) => i > 0 && column.group !== view.columns[i - 1].group);
    const tracks = starts.map((start) => (start ? "6px " : "") + "minmax(18px, 1fr)");
    body.style.setProperty("--tracks", tracks.join(" "));
    grid.style.setProperty("--row", `${view.row_height}px`);
    body.append(heading(view, starts), grid, legend(view));
    for (const row of view.rows) grid.append(line(row, starts));
    current = placeOf(selected()) ?? [0, 0];
    markSelected();
    if (focused) cellAt(current)?.focus({ preventScroll: true });
    root.dataset.drawn = view.title;
  }

  function heading(view, starts) {
    const head = element("div", "wbg-head");
    head.setAttribute("aria-hidden", "true"); // each cell says its own layer and matrix
    head.append(element("span", "wbg-corner", "layer"));
    view.columns.forEach((column, i) => {
      if (starts[i]) head.append(element("i"));
      head.append(element("span", "", column.name));
    });
    return head;
  }

  function line(row, starts) {
    const made = element("div", row.apart ? "wbg-row wbg-apart" : "wbg-row");
    made.setAttribute("role", "row");
    const label = element("span", "wbg-label", row.label);
    label.setAttribute("role", "rowheader");
    made.append(label);
    const drawn = row.cells.map((data) => (data ? drawCell(data) : element("div", "wbg-none")));
    drawn.forEach((cell, i) => {
      if (!row.apart && starts[i]) made.append(element("i"));
      made.append(cell);
    });
    if (row.apart) {
      drawn[0].style.gridColumn = "2 / -1";
      drawn[0].setAttribute("aria-colspan", starts.length);
    }
    const kept = drawn.filter((cell) => dataOf.has(cell));
    if (kept.length) cells.push(kept);
    return made;
  }

  function drawCell(data) {
    const cell = element("div", "wbg-cell");
    cell.setAttribute("role", "gridcell");
    cell.setAttribute("aria-label", data.say);
    cell.tabIndex = -1;
    if (data.color) cell.style.backgroundColor = data.color;
    else cell.classList.add("wbg-unmeasured");
    if (data.fallback) cell.classList.add(data.dark ? "wbg-mark-light" : "wbg-mark-dark");
    dataOf.set(cell, data);
    return cell;
  }

  function legend(view) {
    const made = element("div", "wbg-legend");
    const bar = element("div", "wbg-bar");
    bar.style.background = `linear-gradient(to right, ${view.scale.colors.join(", ")})`;
    marker = element("div", "wbg-marker");
    bar.append(marker);
    const ticks = element("div", "wbg-ticks");
    for (const tick of view.scale.ticks) {
      const label = element("span", "", tick.label);
      label.style.left = `${100 * tick.at}%`;
      ticks.append(label);
    }
    made.append(element("div", "wbg-unit", view.scale.label), bar, ticks);
    if (view.fallbacks) made.append(element("div", "wbg-key", view.fallbacks));
    return made;
  }

  // --- where the cells are ---------------------------------------------------------------

  const cellAt = ([row, column]) => cells[row]?.[Math.min(column, cells[row].length - 1)];

  function placeOf(test) {
    const fits = typeof test === "string" ? (cell) => dataOf.get(cell).tensor === test : (cell) => cell === test;
    for (let row = 0; row < cells.length; row++) {
      const column = cells[row].findIndex(fits);
      if (column >= 0) return [row, column];
    }
    return null;
  }

  function markSelected() {
    for (const cell of cells.flat()) {
      const chosen = dataOf.get(cell).tensor === selected();
      cell.setAttribute("aria-selected", String(chosen));
      cell.tabIndex = -1;
    }
    const reachable = cellAt(current);
    if (reachable) reachable.tabIndex = 0;
    point(placeOf(selected()));
  }

  function point(place) {
    if (!marker) return;
    const at = place ? dataOf.get(cellAt(place)).at : null;
    marker.style.display = at === null || at === undefined ? "none" : "block";
    if (at !== null && at !== undefined) marker.style.left = `${100 * at}%`;
  }

  // --- mouse and keyboard ----------------------------------------------------------------

  function choose(cell) {
    model.set("selected", dataOf.get(cell).tensor);
    model.save_changes();
    live.textContent = `Selected: ${dataOf.get(cell).say}`;
  }

  function moveTo(row, column) {
    const to = cellAt([row, column]);
    if (!to) return;
    current = [row, column]; // the column is kept while passing a row that has only one cell
    for (const cell of cells.flat()) cell.tabIndex = cell === to ? 0 : -1;
    to.focus();
  }

  body.addEventListener("keydown", (event) => {
    const cell = event.target.closest("[role=gridcell]");
    if (!cell || event.altKey || event.ctrlKey || event.metaKey) return;
    const [row, column] = current;
    const last = cells.length - 1;
    const within = (wanted) => Math.max(0, Math.min(last, wanted));
    const end = cells[row].length - 1;
    const moves = {
      ArrowUp: () => moveTo(within(row - 1), column),
      ArrowDown: () => moveTo(within(row + 1), column),
      ArrowLeft: () => moveTo(row, Math.max(0, Math.min(column, end) - 1)),
      ArrowRight: () => moveTo(row, Math.min(end, column + 1)),
      Home: () => moveTo(row, 0),
      End: () => moveTo(row, end),
      PageUp: () => moveTo(within(row - PAGE), column),
      PageDown: () => moveTo(within(row + PAGE), column),
      Enter: () => choose(cell),
      " ": () => choose(cell),
      Escape: () => hideTip(),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    moves[event.key]();
  });

  body.addEventListener("click", (event) => {
    const cell = event.target.closest("[role=gridcell]");
    if (!cell) return;
    moveTo(...placeOf(cell));
    choose(cell);
  });

  const showFor = (event) => {
    const cell = event.target.closest?.("[role=gridcell]");
    if (cell) showTip(cell);
  };
  const hideFor = (event) => {
    if (event.target.closest?.("[role=gridcell]")) hideTip();
  };
  body.addEventListener("mouseover", showFor);
  body.addEventListener("mouseout", hideFor);
  body.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && showFor(event));
  body.addEventListener("focusout", hideFor);

  function showTip(cell) {
    const data = dataOf.get(cell);
    tip.replaceChildren(...data.lines.map((text, i) => element("div", i ? "" : "wbg-name", text)));
    tip.style.display = "block";
    const box = cell.getBoundingClientRect();
    const beside = root.getBoundingClientRect();
    const below = box.bottom - beside.top + 6;
    const left = box.left - beside.left;
    tip.style.left = `${Math.max(0, Math.min(left, beside.width - tip.offsetWidth))}px`;
    const fits = below + tip.offsetHeight <= beside.height;
    tip.style.top = `${fits ? below : box.top - beside.top - tip.offsetHeight - 6}px`;
    point(placeOf(cell));
  }

  function hideTip() {
    tip.style.display = "none";
    point(placeOf(selected()));
  }

  // --- light or dark: figures beside the grid are drawn in Python, which cannot see the page ---

  function reportTheme() {
    let at = el;
    let color = "";
    while (at && (!color || /^(transparent|rgba\(.*, 0\))$/.test(color))) {
      color = getComputedStyle(at).backgroundColor;
      at = at.parentElement;
    }
    const [r, g, b] = (color.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
    const dark = 0.299 * r + 0.587 * g + 0.114 * b < 128;
    if (dark !== model.get("dark")) {
      model.set("dark", dark);
      model.save_changes();
    }
  }
  const themes = new MutationObserver(() => setTimeout(reportTheme, 100));
  themes.observe(document.body, { attributes: true });
  themes.observe(document.documentElement, { attributes: true });

  const onSelected = () => {
    current = placeOf(selected()) ?? current;
    markSelected();
  };
  model.on("change:view", draw);
  model.on("change:selected", onSelected);
  draw();
  requestAnimationFrame(reportTheme);

  return () => {
    themes.disconnect();
    model.off("change:view", draw);
    model.off("change:selected", onSelected);
  };
}

export default { render };
