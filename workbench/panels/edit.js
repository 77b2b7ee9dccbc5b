// The heatmap to edit (after grid.js): cells are selected by mouse and keyboard and given a format, locked, undone.
// Python answers every command with how all cells look then; until it does, a cell looks as it is going to.

function render({ model, el }) {
  let chosen = new Set(); // keys of the selected cells
  let anchor = [0, 0]; // where a range began
  let dragging = false;
  let ahead = new Map(); // key -> how a cell will look, if Python agrees

  const paint = () => model.get("paint");
  const formats = () => model.get("view").formats ?? [];

  const palette = element("div", "wbg-palette");
  palette.setAttribute("role", "toolbar");
  palette.setAttribute("aria-label", "Formats to give to the selection");
  const status = element("div", "wbg-status");
  status.setAttribute("role", "status");

  const grid = heatmap(
    { model, el },
    {
      what: (data) => {
        const now = ahead.get(data.key) ?? paint().cells?.[data.key] ?? { lines: [] };
        const lines = [...data.lines, ...now.lines];
        return { ...now, lines, say: lines.join(", "), selected: chosen.has(data.key) };
      },
      key: onKey,
      press: (event, place) => {
        if (event.shiftKey) select(range(anchor, place));
        else if (event.ctrlKey || event.metaKey) toggle(place);
        else {
          anchor = place;
          dragging = true;
          select(range(place, place), false);
        }
      },
      over: (event, place) => {
        dragging &&= Boolean(event.buttons & 1);
        if (dragging) select(range(anchor, place), false);
        return dragging;
      },
      moved: (place, event) => {
        if (event?.type !== "keydown") return;
        if (!event.shiftKey) anchor = place;
        select(range(anchor, place));
      },
      title: (made, column) => {
        made.classList.add("wbg-press");
        made.title = "Select all of this kind (Ctrl+Space)";
        made.addEventListener("mousedown", (event) => {
          event.preventDefault();
          const from = event.shiftKey ? anchor[1] : column;
          if (!event.shiftKey) anchor = [anchor[0], column];
          select(kind(Math.min(from, column), Math.max(from, column)));
        });
      },
      label: (made, number, row) => {
        made.classList.add("wbg-press");
        made.title = "Select this row (Shift+Space)";
        if (row.open !== undefined) {
          const fold = element("button", "wbg-fold", row.open ? "▾" : "▸");
          fold.setAttribute("aria-expanded", String(row.open));
          fold.setAttribute("aria-label", `Experts of layer ${row.label}`);
          fold.title = row.open ? "Hide the experts" : "Show each expert (Enter)";
          fold.addEventListener("mousedown", (event) => event.stopPropagation());
          fold.addEventListener("click", () => send({ do: "open", row: row.label }));
          made.prepend(fold);
        }
        made.addEventListener("mousedown", (event) => {
          event.preventDefault();
          const from = event.shiftKey ? anchor[0] : number;
          if (!event.shiftKey) anchor = [number, 0];
          select(rows(Math.min(from, number), Math.max(from, number)));
        });
      },
      drawn: drawPalette,
    },
  );
  grid.grid.setAttribute("aria-multiselectable", "true");
  grid.root.prepend(palette);
  grid.root.append(status);
  const onRelease = () => {
    if (dragging) publish();
    dragging = false;
  };
  document.addEventListener("mouseup", onRelease);

  // --- what is selected --------------------------------------------------------------------

  const at = (line, column) => grid.dataAt([line, column]);

  function range(from, to) {
    const found = [];
    const [left, right] = [Math.min(from[1], to[1]), Math.max(from[1], to[1])];
    for (let line = Math.min(from[0], to[0]); line <= Math.max(from[0], to[0]); line++) {
      for (let column = left; column <= right; column++) if (at(line, column)) found.push(at(line, column).key);
    }
    return found;
  }

  const rows = (from, to) => range([from, 0], [to, (model.get("view").columns ?? []).length - 1]);

  function kind(from, to) {
    const found = [];
    grid.lines().forEach(({ row }, line) => {
      if (row.apart || row.inner) return;
      for (let column = from; column <= to; column++) if (at(line, column)) found.push(at(line, column).key);
    });
    return found;
  }

  const everything = () => rows(0, grid.lines().length - 1);

  function select(keys, done = true) {
    chosen = new Set(keys);
    grid.repaint();
    if (done) publish();
  }

  function toggle(place) {
    anchor = place;
    const { key } = grid.dataAt(place);
    if (!chosen.delete(key)) chosen.add(key);
    select(chosen);
  }

  function publish() {
    model.set("chosen", [...chosen]);
    model.save_changes();
    const many = chosen.size;
    tell(many === 1 ? sayOf([...chosen][0]) : many ? `${many} cells are selected.` : "Nothing is selected.");
  }

  function sayOf(key) {
    const place = grid.placeOf((data) => data.key === key);
    return place ? [...grid.dataAt(place).lines, ...(paint().cells?.[key]?.lines ?? [])].join(", ") : "";
  }

  // --- commands ---------------------------------------------------------------------------------

  function send(command) {
    model.send({ ...command, cells: [...chosen] });
  }

  function give(number) {
    const format = formats()[number];
    if (!format) return;
    if (!format.why && paint().by === "format") {
      for (const line of grid.lines()) {
        for (const data of line.cells) {
          const used = data && chosen.has(data.key) ? data.as[number] : null;
          const now = data && paint().cells?.[data.key];
          if (!used || !now || now.locked) continue;
          const { color, dark } = model.get("view").colors[used];
          ahead.set(data.key, { ...now, color, dark, text: used, mixed: false, fallback: used !== format.name });
        }
      }
      grid.repaint();
    }
    send({ do: "give", format: format.name });
  }

  function onKey(event, place) {
    const held = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const withCtrl = {
      a: () => select(everything()),
      z: () => send({ do: event.shiftKey ? "redo" : "undo" }),
      y: () => send({ do: "redo" }),
      " ": () => select(grid.lines()[place[0]].row.apart ? rows(place[0], place[0]) : kind(place[1], place[1])),
    };
    const plain = {
      l: () => send({ do: "lock" }),
      Escape: () => {
        grid.hideTip();
        select([]);
      },
      Enter: () => {
        const { row } = grid.lines()[place[0]];
        if (row.open !== undefined) send({ do: "open", row: row.label });
        else select(range(place, place));
      },
      " ": () => (event.shiftKey ? select(rows(place[0], place[0])) : toggle(place)),
    };
    if (event.altKey) return false;
    if (!held && /^[0-9]$/.test(key)) give(key === "0" ? 9 : Number(key) - 1);
    else if ((held ? withCtrl : plain)[key]) (held ? withCtrl : plain)[key]();
    else return false;
    return true;
  }

  // --- formats: what the colours mean, and what can be given ----------------------------------------

  function drawPalette() {
    const view = model.get("view");
    palette.replaceChildren();
    formats().forEach((format, number) => {
      const chip = element("button", "wbg-chip");
      const swatch = element("i");
      swatch.style.background = view.colors[format.name]?.color ?? "transparent";
      const digit = number < 10 ? String((number + 1) % 10) : "";
      chip.append(swatch, element("span", "", format.name));
      if (digit) {
        chip.append(element("kbd", "", digit));
        chip.setAttribute("aria-keyshortcuts", digit);
      }
      chip.title = format.why || `Give the selection ${format.name}: ${format.bits} bits per weight`;
      chip.setAttribute("aria-label", chip.title);
      if (format.why) chip.setAttribute("aria-disabled", "true");
      chip.addEventListener("click", () => give(number));
      palette.append(chip);
    });
    const others = Object.keys(view.colors ?? {}).filter((name) => !formats().some((format) => format.name === name));
    if (!others.length) return;
    const instead = element("span", "wbg-others", "where a shape does not fit:");
    for (const name of others) {
      const swatch = element("i");
      swatch.style.background = view.colors[name].color;
      instead.append(swatch, element("span", "", name));
    }
    palette.append(instead);
  }

  function tell(text, wrong = false) {
    status.textContent = text;
    status.classList.toggle("wbg-wrong", wrong);
  }

  function onPaint() {
    ahead = new Map();
    grid.hideTip(); // it says what was
    grid.repaint();
    if (paint().said) tell(paint().said, paint().refused);
    grid.root.dataset.answer = paint().answer ?? 0;
  }
  function onChosen() {
    chosen = new Set(model.get("chosen"));
    grid.repaint();
  }

  model.on("change:paint", onPaint);
  model.on("change:chosen", onChosen);
  chosen = new Set(model.get("chosen"));
  grid.draw();
  return () => {
    grid.stop();
    document.removeEventListener("mouseup", onRelease);
    model.off("change:paint", onPaint);
    model.off("change:chosen", onChosen);
  };
}

export default { render };
