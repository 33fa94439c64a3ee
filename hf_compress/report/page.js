(function () {
  "use strict";
  function valueOf(row, column) {
    var cell = row.cells[column];
    var value = cell.getAttribute("data-v");
    return value === null ? cell.textContent : value === "" ? null : Number(value);
  }
  function compare(a, b) {
    return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  }
  function sort(table, heading, column) {
    var body = table.tBodies[0];
    var rows = Array.from(body.rows, function (row) { return [valueOf(row, column), row]; });
    var down = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    rows.sort(function (a, b) {
      // what is not there stays last either way
      if (a[0] === null || b[0] === null) { return (a[0] === null) - (b[0] === null); }
      return down * compare(a[0], b[0]);
    });
    table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    heading.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
    rows.forEach(function (pair) { body.appendChild(pair[1]); });
  }
  function filterOf(table, box) {
    var label = document.createElement("label");
    var input = document.createElement("input");
    label.className = "filter";
    input.type = "search";
    label.append(box.getAttribute("data-filter"), input);
    input.addEventListener("input", function () {
      var wanted = input.value.toLowerCase();
      Array.from(table.tBodies[0].rows).forEach(function (row) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
      });
    });
    box.before(label);
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (heading, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", function () { sort(table, heading, column); });
    });
    if (table.tBodies[0].rows.length > 15) { filterOf(table, table.parentElement); }
  });
  document.querySelectorAll(".hint").forEach(function (hint) { hint.hidden = false; });
})();
