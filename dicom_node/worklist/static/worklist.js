// Keys for the worklist, and the place of the focus across live updates.
"use strict";

const links = () => [...document.querySelectorAll("#rows a.open")];
const isTyping = (target) => target.matches("input, select, textarea");

function step(by) {
  const all = links();
  const at = all.indexOf(document.activeElement?.closest("tr")?.querySelector("a.open"));
  const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || (event.repeat && event.key === "m")) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const row = document.activeElement?.closest("#rows tr");
  if (event.key === "j" || event.key === "ArrowDown") step(1);
  else if (event.key === "k" || event.key === "ArrowUp") step(-1);
  else if (event.key === "m" && row) {
    marked = row.id;
    row.querySelector(".mark-read").click();
  }
  else if (event.key === "/") document.querySelector(".filters input[type=search]").focus();
  else return;
  event.preventDefault();
});

// What is focused stays so when its line moves. Where one's own key made the line leave, the one that took its place is;
// where somebody else did, none is: the next key shall not hit a study that nobody has looked at.
let focused = null;
let marked = null;
document.addEventListener("htmx:beforeSwap", () => {
  const row = document.activeElement?.closest("#rows tr");
  focused = row && { id: row.id, at: links().indexOf(row.querySelector("a.open")) };
});
document.addEventListener("htmx:afterSwap", () => {
  if (!focused) return;
  const all = links();
  const next = focused.id === marked ? all[Math.min(focused.at, all.length - 1)] : null;
  (document.getElementById(focused.id)?.querySelector("a.open") ?? next)?.focus();
});

// A list that cannot be renewed says so: it is kept open all day.
const stale = (is) => document.getElementById("stale").toggleAttribute("hidden", !is);
for (const fault of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.addEventListener(fault, () => stale(true));
}
document.addEventListener("htmx:afterOnLoad", (event) => {
  if (event.detail.xhr.status < 400) stale(false);
});

// A study without a picture that can be shown keeps its place.
document.addEventListener("error", (event) => {
  if (event.target.matches?.("td.picture img")) event.target.classList.add("missing");
}, true);

for (const field of document.querySelectorAll(".filters select, .filters input[type=date]")) {
  field.addEventListener("change", () => field.form.requestSubmit());
}
