// A heatmap: layers down, matrices across, embedding and head apart. It draws what Python worked out (colours, words,
// legend), only the rows that are seen, and moves the focus by keyboard. What a press or a key does besides is told
// by whoever makes it: inspect.js or edit.js, which follows this text. Every string is set as text, never as markup.

const PAGE = 10; // rows that PageUp and PageDown move by
const GAP = 2; // pixels between rows
const APART = { height: 18, gap: 8 }; // the embedding's row and the head's
const TALLEST = 820; // pixels that are seen at once; what is longer scrolls

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// hooks: what(data) -> how a cell looks now, beyond what its row says; key(event, place) -> whether it was one;
// press(event, place); over(event, place) -> whether a drag is under way; moved(place, event), which tells of a cell
// what else its hint would; title(element, column), label(element, line, row) -> dress a heading; at() -> the value
// that the legend points at by itself; drawn().
function heatmap({ model, el }, hooks) {
  const root = element("div", "wbg");
  // JupyterLab's command mode would take arrows and Enter for itself.
  root.dataset.lmSuppressShortcuts = "true";
  const head = element("div", "wbg-head");
  const scroller = element("div", "wbg-scroll");
  const grid = element("div", "wbg-grid");
  grid.setAttribute("role", "grid");
  const below = element("div");
  const tip = element("div", "wbg-tip");
  tip.setAttribute("role", "tooltip");
  const live = element("div", "wbg-live");
  live.setAttribute("aria-live", "polite");
  scroller.append(grid);
  const body = element("div");
  body.append(head, scroller);
  root.append(body, below, tip, live);
  el.append(root);

  let lines = []; // { row, top, height, cells: [data or null], made: element or null }
  let total = 0;
  let starts = [];
  let current = [0, 0]; // line and column of the one cell that Tab reaches
  let marker = null;
  const placeOfCell = new WeakMap();

  const look = (data) => (hooks.what ? { ...data, ...hooks.what(data) } : data);

  // --- drawing ---------------------------------------------------------------------------

  function draw() {
    const view = model.get("view");
    const focused = grid.contains(document.activeElement);
    hideTip();
    grid.replaceChildren();
    head.replaceChildren();
    below.replaceChildren();
    marker = null;
    lines = [];
    if (!view.rows || !view.rows.length) return hooks.drawn?.();
    grid.setAttribute("aria-label", view.title);
    // Groups of matrices (attention, feed-forward) stand a little apart: an empty track before each but the first.
    starts = view.columns.map((column, i) => i > 0 && column.group !== view.columns[i - 1].group);
    root.style.setProperty("--tracks", starts.map((start) => (start ? "6px " : "") + "minmax(18px, 1fr)").join(" "));
    root.style.setProperty("--row", `${view.row_height}px`);
    root.classList.toggle("wbg-wordless", view.row_height < 12);
    let top = 0;
    lines = view.rows.map((row, i) => {
      const height = row.apart ? APART.height : view.row_height;
      if (row.apart && i && !view.rows[i - 1].apart) top += APART.gap - GAP;
      const line = { row, top, height, cells: row.cells, made: null };
      top += height + (row.apart && i + 1 < view.rows.length ? APART.gap : GAP);
      return line;
    });
    total = Math.max(0, top - GAP);
    grid.setAttribute("aria-rowcount", lines.length);
    grid.setAttribute("aria-colcount", starts.length);
    grid.style.height = `${total}px`;
    scroller.style.maxHeight = `${TALLEST}px`;
    heading(view);
    if (view.scale) below.append(legend(view));
    current = nearest(current) ?? [0, 0];
    drawSeen();
    if (focused) cellAt(current)?.focus({ preventScroll: true });
    point(null);
    root.dataset.drawn = view.title;
    hooks.drawn?.();
  }

  function heading(view) {
    head.setAttribute("aria-hidden", "true"); // each cell says its own layer and matrix
    head.append(element("span", "wbg-corner", "layer"));
    view.columns.forEach((column, i) => {
      if (starts[i]) head.append(element("i"));
      const made = element("span", "", column.name);
      hooks.title?.(made, i);
      head.append(made);
    });
  }

  // Only the rows in sight are in the page, and the one that has the focus, which would be lost with it.
  function drawSeen() {
    const from = total <= TALLEST ? 0 : scroller.scrollTop - TALLEST / 2;
    const to = total <= TALLEST ? total : scroller.scrollTop + 1.5 * TALLEST;
    let before = null;
    lines.forEach((line, i) => {
      const seen = (line.top + line.height >= from && line.top <= to) || i === current[0];
      if (seen && !line.made) {
        line.made = drawLine(line, i);
        if (before) before.after(line.made);
        else grid.prepend(line.made);
      } else if (!seen && line.made) {
        line.made.remove();
        line.made = null;
      }
      before = line.made ?? before;
    });
    head.style.paddingRight = `${scroller.offsetWidth - scroller.clientWidth}px`;
  }

  function drawLine(line, number) {
    const { row } = line;
    const made = element("div", `wbg-row${row.apart ? " wbg-apart" : ""}${row.inner ? " wbg-inner" : ""}`);
    made.setAttribute("role", "row");
    made.setAttribute("aria-rowindex", number + 1);
    made.style.top = `${line.top}px`;
    const label = element("span", "wbg-label", row.label);
    label.setAttribute("role", "rowheader");
    hooks.label?.(label, number, row);
    made.append(label);
    row.cells.forEach((data, column) => {
      if (!row.apart && starts[column]) made.append(element("i"));
      made.append(data ? drawCell(data, number, column) : element("div", "wbg-none"));
    });
    if (row.apart) {
      made.lastChild.style.gridColumn = "2 / -1";
      made.lastChild.setAttribute("aria-colspan", starts.length);
    }
    return made;
  }

  function drawCell(data, line, column) {
    const cell = element("div", "wbg-cell");
    cell.setAttribute("role", "gridcell");
    cell.setAttribute("aria-colindex", column + 1);
    placeOfCell.set(cell, [line, column]);
    dress(cell, data, [line, column]);
    return cell;
  }

  function dress(cell, data, place) {
    const now = look(data);
    cell.setAttribute("aria-label", now.say);
    cell.setAttribute("aria-selected", String(Boolean(now.selected)));
    cell.tabIndex = place[0] === current[0] && place[1] === current[1] ? 0 : -1;
    cell.style.backgroundColor = now.color ?? "";
    cell.className = "wbg-cell";
    if (!now.color) cell.classList.add("wbg-unmeasured");
    if (now.fallback) cell.classList.add(now.dark ? "wbg-mark-light" : "wbg-mark-dark");
    if (now.locked) cell.classList.add("wbg-locked");
    if (now.mixed) cell.classList.add("wbg-mixed");
    cell.style.color = now.dark ? "#fff" : "#000";
    const text = now.text ?? "";
    if (cell.textContent !== text) cell.textContent = text;
  }

  // Say what has changed of the cells that are drawn: colours, marks, selection.
  function repaint() {
    lines.forEach((line, number) => {
      if (!line.made) return;
      for (const cell of line.made.querySelectorAll("[role=gridcell]")) {
        const place = placeOfCell.get(cell);
        dress(cell, line.cells[place[1]], [number, place[1]]);
      }
    });
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

  // --- where the cells are -----------------------------------------------------------------

  const dataAt = ([line, column]) => lines[line]?.cells[lines[line].row.apart ? 0 : column] ?? null;

  function cellAt(place) {
    const found = nearest(place);
    const made = found && lines[found[0]].made;
    if (!made) return null;
    return [...made.querySelectorAll("[role=gridcell]")].find((cell) => placeOfCell.get(cell)[1] === found[1]);
  }

  // The place itself, or the nearest of its line that has a cell.
  function nearest([line, column]) {
    const cells = lines[line]?.cells;
    if (!cells) return null;
    const there = cells.map((data, i) => (data ? i : -1)).filter((i) => i >= 0);
    if (!there.length) return null;
    return [line, there.reduce((best, i) => (Math.abs(i - column) < Math.abs(best - column) ? i : best))];
  }

  function placeOf(test) {
    for (let line = 0; line < lines.length; line++) {
      const column = lines[line].cells.findIndex((data) => data && test(data));
      if (column >= 0) return [line, column];
    }
    return null;
  }

  // The value that the legend points at.
  function point(data) {
    if (!marker) return;
    const at = (data && look(data).at) ?? hooks.at?.() ?? null;
    marker.style.display = at === null ? "none" : "block";
    if (at !== null) marker.style.left = `${100 * at}%`;
  }

  // --- mouse and keyboard --------------------------------------------------------------------

  let wanted = 0; // the column to go back to after a line that has only one cell

  // Move the focus to a cell; the page scrolls only as far as it must.
  function moveTo(line, column, event) {
    const to = nearest([line, column]);
    if (!to) return;
    const before = cellAt(current);
    if (before) before.tabIndex = -1;
    current = to;
    if (event?.type !== "keydown" || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) wanted = to[1];
    const { top, height } = lines[to[0]];
    if (total > TALLEST) {
      if (top < scroller.scrollTop) scroller.scrollTop = top - GAP;
      else if (top + height > scroller.scrollTop + TALLEST) scroller.scrollTop = top + height - TALLEST + GAP;
    }
    drawSeen();
    const cell = cellAt(to);
    cell.tabIndex = 0;
    cell.focus({ preventScroll: total > TALLEST });
    hooks.moved?.(to, event);
  }

  const step = (cells, column, by) => {
    for (let i = column + by; i >= 0 && i < cells.length; i += by) if (cells[i]) return i;
    return column;
  };

  grid.addEventListener("keydown", (event) => {
    const cell = event.target.closest("[role=gridcell]");
    if (!cell) return;
    const place = placeOfCell.get(cell);
    if (hooks.key?.(event, place)) {
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [line, column] = place;
    const within = (asked) => Math.max(0, Math.min(lines.length - 1, asked));
    const { cells } = lines[line];
    const moves = {
      ArrowUp: () => moveTo(within(line - 1), wanted, event),
      ArrowDown: () => moveTo(within(line + 1), wanted, event),
      ArrowLeft: () => moveTo(line, step(cells, column, -1), event),
      ArrowRight: () => moveTo(line, step(cells, column, 1), event),
      Home: () => moveTo(line, 0, event),
      End: () => moveTo(line, cells.length - 1, event),
      PageUp: () => moveTo(within(line - PAGE), column, event),
      PageDown: () => moveTo(within(line + PAGE), column, event),
      Escape: () => hideTip(),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    moves[event.key]();
  });

  grid.addEventListener("mousedown", (event) => {
    const cell = event.target.closest("[role=gridcell]");
    if (!cell || event.button) return;
    event.preventDefault(); // else the page would begin to mark text
    const place = placeOfCell.get(cell);
    moveTo(...place, event);
    hooks.press?.(event, place);
  });

  scroller.addEventListener("scroll", () => requestAnimationFrame(drawSeen), { passive: true });
  const resized = new ResizeObserver(() => drawSeen());
  resized.observe(scroller);

  const showFor = (event) => {
    const cell = event.target.closest?.("[role=gridcell]");
    if (cell) showTip(cell);
  };
  const hideFor = (event) => {
    if (event.target.closest?.("[role=gridcell]")) hideTip();
  };
  grid.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("[role=gridcell]");
    if (cell && !hooks.over?.(event, placeOfCell.get(cell))) showFor(event);
  });
  grid.addEventListener("mouseout", hideFor);
  grid.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && !hooks.moved && showFor(event));
  grid.addEventListener("focusout", hideFor);

  function showTip(cell) {
    const data = dataAt(placeOfCell.get(cell));
    tip.replaceChildren(...look(data).lines.map((text, i) => element("div", i ? "" : "wbg-name", text)));
    tip.style.display = "block";
    const box = cell.getBoundingClientRect();
    const beside = root.getBoundingClientRect();
    const under = box.bottom - beside.top + 6;
    const left = box.left - beside.left;
    tip.style.left = `${Math.max(0, Math.min(left, beside.width - tip.offsetWidth))}px`;
    const fits = under + tip.offsetHeight <= beside.height;
    tip.style.top = `${fits ? under : box.top - beside.top - tip.offsetHeight - 6}px`;
    point(data);
  }

  function hideTip() {
    tip.style.display = "none";
    point(null);
  }

  // --- light or dark: figures beside the grid are drawn in Python, which cannot see the page ----------

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
  model.on("change:view", draw);
  requestAnimationFrame(reportTheme);

  return {
    ...{ root, body, grid, draw, repaint, moveTo, placeOf, dataAt, point, hideTip },
    lines: () => lines,
    current: () => current,
    setCurrent: (place) => (current = nearest(place) ?? current),
    say: (text) => (live.textContent = text),
    stop: () => {
      themes.disconnect();
      resized.disconnect();
      model.off("change:view", draw);
    },
  };
}
