// The table of all trainings: sorted by a click, filtered by words, saved as a file. Rows come a hundred at a time.
(() => {
  const packed = JSON.parse(document.getElementById("study-data").textContent);
  const keys = packed.keys;
  const rows = packed.rows.map((values) =>
    Object.fromEntries(keys.map((key, i) => [key, values[i]]).filter(([, value]) => value !== null)));
  const table = document.getElementById("study-runs");
  const filter = document.getElementById("study-filter");
  const more = document.getElementById("study-more");
  let by = null, up = true, shown = 100;
  const text = (value) =>
    typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : value ?? "";
  const order = (a, b) => {
    const [x, y] = [a[by], b[by]];
    if (x == null || y == null) return (x == null) - (y == null);
    const found = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return up ? found : -found;
  };
  const chosen = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((row) => {
      const line = keys.map((key) => row[key]).join(" ").toLowerCase();
      return words.every((word) => line.includes(word));
    });
    return by === null ? found : found.sort(order);
  };
  const cell = (tag, value) => {
    const made = document.createElement(tag);
    made.textContent = value;
    return made;
  };
  const draw = () => {
    const found = chosen();
    const body = document.createElement("tbody");
    for (const row of found.slice(0, shown)) {
      const line = document.createElement("tr");
      for (const key of keys) line.append(cell("td", text(row[key])));
      body.append(line);
    }
    table.tBodies[0].replaceWith(body);
    more.hidden = found.length <= shown;
    document.getElementById("study-count").textContent = `${found.length} of ${rows.length} trainings`;
  };
  const head = document.createElement("tr");
  for (const key of keys) {
    const at = cell("th", "");
    const button = cell("button", key);
    at.scope = "col";
    button.type = "button";
    button.addEventListener("click", () => {
      up = by === key ? !up : true;
      by = key;
      for (const other of head.children) other.removeAttribute("aria-sort");
      at.setAttribute("aria-sort", up ? "ascending" : "descending");
      draw();
    });
    at.append(button);
    head.append(at);
  }
  table.tHead.append(head);
  const save = (name, kind, content) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: kind }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const quoted = (value) => (/[",\n]/.test(String(value ?? "")) ? `"${String(value).replace(/"/g, '""')}"` : value ?? "");
  document.getElementById("study-csv").addEventListener("click", () => {
    const lines = [keys, ...chosen().map((row) => keys.map((key) => row[key]))];
    save("study.csv", "text/csv", lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n");
  });
  document.getElementById("study-json").addEventListener("click", () => {
    save("study.json", "application/json", JSON.stringify(chosen(), null, 1));
  });
  filter.addEventListener("input", () => { shown = 100; draw(); });
  more.addEventListener("click", () => { shown += 1000; draw(); });
  draw();
})();
