// The heatmap to look at (after grid.js): one cell is selected, by a press, Enter or the space bar.

function render({ model, el }) {
  const selected = () => model.get("selected");
  const isSelected = (data) => data.tensor === selected();

  const grid = heatmap(
    { model, el },
    {
      what: (data) => ({ selected: isSelected(data) }),
      key: (event, place) => {
        if (event.altKey || event.ctrlKey || event.metaKey || (event.key !== "Enter" && event.key !== " ")) return false;
        choose(place);
        return true;
      },
      press: (event, place) => choose(place),
      at: () => grid.dataAt(grid.placeOf(isSelected) ?? [-1, 0])?.at,
    },
  );

  function choose(place) {
    const data = grid.dataAt(place);
    model.set("selected", data.tensor);
    model.save_changes();
    grid.say(`Selected: ${data.say}`);
  }

  const onSelected = () => {
    grid.setCurrent(grid.placeOf(isSelected) ?? grid.current());
    grid.repaint();
    grid.point(null);
  };
  model.on("change:selected", onSelected);
  grid.draw();
  onSelected();
  return () => {
    grid.stop();
    model.off("change:selected", onSelected);
  };
}

export default { render };
