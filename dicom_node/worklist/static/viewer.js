// The X-ray of a study's page: window and level, zoom and pan, and the networks' heatmaps over it.
//
// It starts by itself on every .viewer of the page. The grey values come as `dicom_node.worklist.pictures` packs them:
// a header of 16 bytes, then rows x columns little endian uint16.
"use strict";

(() => {
  const LEVELS = 65536;
  const HEADER_BYTES = 16;
  const LEAST_WINDOW = 0.01; // of the whole range
  const MOST_WINDOW = 2;
  const LEAST_ZOOM = 0.5; // 1 fits the picture into its place
  const MOST_ZOOM = 20;
  const IN_SIGHT = 48; // CSS pixels of the picture that cannot be pushed out of its place
  const STEP = 1.1; // of window, and of zoom by a key
  const LEVEL_STEP = 0.02;
  const PAN_STEP = 40; // CSS pixels
  const DRAG = 400; // CSS pixels that move window or level by the whole range

  const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
  const percent = (value) => `${Math.round(value * 100)} %`;

  class Viewer {
    constructor(root) {
      this.root = root;
      this.canvas = root.querySelector("canvas.xray");
      this.context = this.canvas.getContext("2d", { alpha: false });
      this.overlays = [...root.querySelectorAll("img.overlay")];
      this.radios = [...root.querySelectorAll('input[type="radio"][name="overlay"]')];
      this.opacity = root.querySelector("input.opacity");
      this.output = root.querySelector("output.level");
      this.tool = root.querySelector('[data-do="window"]');
      this.lut = new Uint32Array(LEVELS);
      this.pointers = new Map();
      this.grey = null;
      this.frame = 0;
      this.build();
      this.reset();
      this.listen();
      this.showOverlay();
      this.load();
    }

    // The picture and its overlays move together in one layer, inside the place that they fill.
    build() {
      this.layer = document.createElement("div");
      this.layer.className = "layer";
      this.layer.append(this.canvas, ...this.overlays);
      this.stage = document.createElement("div");
      this.stage.className = "stage";
      this.stage.tabIndex = 0;
      this.stage.setAttribute("role", "group");
      this.stage.setAttribute("aria-label", "X-ray");
      this.alert = document.createElement("p");
      this.alert.className = "failure";
      this.alert.setAttribute("role", "alert");
      this.stage.append(this.layer);
      this.root.prepend(this.stage, this.alert);
      if (this.output) {
        this.output.setAttribute("aria-live", "polite");
      }
      for (const image of this.overlays) {
        image.alt ||= "";
        image.draggable = false;
      }
    }

    async load() {
      this.root.setAttribute("aria-busy", "true");
      try {
        this.take(await this.fetched());
        this.root.dataset.ready = "true";
      } catch (error) {
        this.root.dataset.failed = "true";
        this.tell(error instanceof PictureError ? error.message : "The picture cannot be shown.");
      } finally {
        this.root.removeAttribute("aria-busy");
      }
    }

    async fetched() {
      let answer;
      try {
        // Where nobody is signed in any more, the answer leads to another page: that is no picture.
        answer = await fetch(this.root.dataset.grey, { credentials: "same-origin", redirect: "manual" });
      } catch {
        throw new PictureError("The picture cannot be fetched: the node does not answer.");
      }
      if (answer.type === "opaqueredirect" || answer.status === 401) {
        throw new PictureError("The picture cannot be fetched: you are not logged in any more.");
      }
      if (answer.status === 404) {
        throw new PictureError("The picture is not in the archive any more.");
      }
      if (!answer.ok) {
        throw new PictureError(`The picture cannot be had (${answer.status}).`);
      }
      try {
        return await answer.arrayBuffer();
      } catch {
        throw new PictureError("The picture did not arrive whole.");
      }
    }

    take(content) {
      const told = new DataView(content);
      const isOurs =
        content.byteLength > HEADER_BYTES && told.getUint32(0) === 0x43585247 && told.getUint16(4, true) === 1;
      if (!isOurs) {
        throw new PictureError("What the node sent is no picture.");
      }
      const rows = told.getUint16(6, true);
      const columns = told.getUint16(8, true);
      if (content.byteLength !== HEADER_BYTES + 2 * rows * columns) {
        throw new PictureError("The picture did not arrive whole.");
      }
      this.grey = new Uint16Array(content, HEADER_BYTES); // every browser's machine is little endian
      this.canvas.width = columns;
      this.canvas.height = rows;
      this.image = this.context.createImageData(columns, rows);
      this.stage.style.aspectRatio = `${columns} / ${rows}`;
      this.paint();
      this.place();
    }

    tell(text) {
      this.alert.textContent = text;
    }

    reset() {
      this.window = 1;
      this.level = 0.5;
      this.inverted = false;
      this.zoom = 1;
      this.x = 0; // of the picture's centre, from that of its place, CSS pixels
      this.y = 0;
      this.changed();
    }

    // Everything that moves is drawn with the next frame; the text is there at once.
    changed(repaint = true) {
      this.x = clamp(this.x, -this.reach("x"), this.reach("x"));
      this.y = clamp(this.y, -this.reach("y"), this.reach("y"));
      this.say();
      this.stale ||= repaint;
      if (!this.frame) {
        this.frame = requestAnimationFrame(() => {
          this.frame = 0;
          if (this.stale) {
            this.paint();
          }
          this.place();
        });
      }
    }

    reach(axis) {
      const { width, height } = this.fitted();
      const [picture, place] =
        axis === "x" ? [width, this.stage.clientWidth] : [height, this.stage.clientHeight];
      return Math.max(0, (picture * this.zoom + place) / 2 - IN_SIGHT);
    }

    say() {
      for (const button of this.root.querySelectorAll('[data-do="invert"]')) {
        button.setAttribute("aria-pressed", String(this.inverted));
      }
      if (this.output) {
        const inverted = this.inverted ? " · inverted" : "";
        this.output.textContent =
          `Window ${percent(this.window)} · Level ${percent(this.level)} · Zoom ${percent(this.zoom)}${inverted}`;
      }
    }

    paint() {
      this.stale = false;
      if (!this.grey) {
        return;
      }
      const { lut, grey } = this;
      const dark = this.level - this.window / 2;
      for (let value = 0; value < LEVELS; value += 1) {
        const part = clamp((value / (LEVELS - 1) - dark) / this.window, 0, 1);
        const shown = Math.round((this.inverted ? 1 - part : part) * 255);
        lut[value] = 0xff000000 | (shown << 16) | (shown << 8) | shown;
      }
      const pixels = new Uint32Array(this.image.data.buffer);
      for (let index = 0; index < pixels.length; index += 1) {
        pixels[index] = lut[grey[index]];
      }
      this.context.putImageData(this.image, 0, 0);
    }

    // The size of the picture where it fills its place: CSS pixels at zoom 1.
    fitted() {
      const { clientWidth, clientHeight } = this.stage;
      const { width, height } = this.canvas;
      const scale = Math.min(clientWidth / width, clientHeight / height);
      return { width: width * scale, height: height * scale };
    }

    place() {
      const { width, height } = this.fitted();
      const left = (this.stage.clientWidth - width * this.zoom) / 2 + this.x;
      const top = (this.stage.clientHeight - height * this.zoom) / 2 + this.y;
      this.layer.style.width = `${width}px`;
      this.layer.style.height = `${height}px`;
      this.layer.style.transform = `translate(${left}px, ${top}px) scale(${this.zoom})`;
    }

    windowTo(window, level) {
      this.window = clamp(window, LEAST_WINDOW, MOST_WINDOW);
      this.level = clamp(level, 0, 1);
      this.changed();
    }

    // What lies under the point (from the centre of the place) stays there.
    zoomBy(factor, x = 0, y = 0) {
      const before = this.zoom;
      this.zoom = clamp(before * factor, LEAST_ZOOM, MOST_ZOOM);
      const grown = this.zoom / before;
      this.x = x - (x - this.x) * grown;
      this.y = y - (y - this.y) * grown;
      this.changed(false);
    }

    panBy(x, y) {
      this.x += x;
      this.y += y;
      this.changed(false);
    }

    invert() {
      this.inverted = !this.inverted;
      this.changed();
    }

    toggleTool() {
      if (this.tool) {
        const isOn = this.tool.getAttribute("aria-pressed") !== "true";
        this.tool.setAttribute("aria-pressed", String(isOn));
        this.stage.classList.toggle("windowing", isOn);
      }
    }

    do(what) {
      const doing = {
        invert: () => this.invert(),
        reset: () => this.reset(),
        window: () => this.toggleTool(),
        "zoom-in": () => this.zoomBy(STEP * STEP),
        "zoom-out": () => this.zoomBy(1 / (STEP * STEP)),
      };
      doing[what]?.();
    }

    choose(number) {
      const named = this.radios.filter((radio) => radio.value);
      const radio = number ? named[number - 1] : this.radios.find((one) => !one.value);
      if (radio) {
        radio.checked = true;
        this.showOverlay();
      }
    }

    showOverlay() {
      const name = this.radios.find((radio) => radio.checked)?.value ?? "";
      for (const image of this.overlays) {
        image.hidden = !name || image.dataset.name !== name;
        image.style.opacity = String(this.share());
      }
      if (this.opacity) {
        this.opacity.disabled = !name;
      }
    }

    // The opacity as a share of the slider's length.
    share() {
      if (!this.opacity) {
        return 0.6;
      }
      const [least, most] = this.range();
      return (Number(this.opacity.value) - least) / (most - least || 1);
    }

    range() {
      return [Number(this.opacity.min || 0), Number(this.opacity.max || 100)];
    }

    opacityBy(share) {
      if (this.opacity && !this.opacity.disabled) {
        const [least, most] = this.range();
        this.opacity.value = String(clamp(least + (this.share() + share) * (most - least), least, most));
        this.showOverlay();
      }
    }

    listen() {
      this.root.addEventListener("click", (event) => {
        const button = event.target.closest("[data-do]");
        if (button) {
          this.do(button.dataset.do);
        }
      });
      this.root.addEventListener("change", (event) => {
        if (this.radios.includes(event.target)) {
          this.showOverlay();
        }
      });
      this.opacity?.addEventListener("input", () => this.showOverlay());
      for (const image of this.overlays) {
        image.addEventListener("error", () => this.tell("The heatmap cannot be had."));
        image.addEventListener("load", () => {
          if (!this.root.dataset.failed) {
            this.tell("");
          }
        });
      }
      const { stage } = this;
      stage.addEventListener("pointerdown", (event) => this.down(event));
      stage.addEventListener("pointermove", (event) => this.move(event));
      for (const ending of ["pointerup", "pointercancel", "lostpointercapture"]) {
        stage.addEventListener(ending, (event) => this.pointers.delete(event.pointerId));
      }
      // Or a flick would go on as a scroll of nothing, which swallows the tap on a button after it.
      stage.addEventListener("touchmove", (event) => event.preventDefault(), { passive: false });
      stage.addEventListener("contextmenu", (event) => event.preventDefault());
      stage.addEventListener("dblclick", () => this.reset());
      stage.addEventListener(
        "wheel",
        (event) => {
          event.preventDefault();
          const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 100 : event.deltaY / 3;
          this.zoomBy(1.15 ** -clamp(lines, -3, 3), ...this.fromCentre(event));
        },
        { passive: false },
      );
      new ResizeObserver(() => this.changed(false)).observe(stage);
    }

    fromCentre(event) {
      const place = this.stage.getBoundingClientRect();
      return [event.clientX - place.left - place.width / 2, event.clientY - place.top - place.height / 2];
    }

    down(event) {
      if (event.pointerType === "mouse" && event.button === 1) {
        event.preventDefault(); // or the page would scroll by itself
      }
      this.stage.setPointerCapture(event.pointerId);
      const [x, y] = this.fromCentre(event);
      const windows = event.button === 2 || this.tool?.getAttribute("aria-pressed") === "true";
      this.pointers.set(event.pointerId, { x, y, windows });
    }

    move(event) {
      const pointer = this.pointers.get(event.pointerId);
      if (!pointer) {
        return;
      }
      const [x, y] = this.fromCentre(event);
      const others = [...this.pointers.values()].filter((one) => one !== pointer);
      if (others.length === 1) {
        this.pinch(pointer, { x, y }, others[0]);
      } else if (!others.length && pointer.windows) {
        this.windowTo(this.window + (x - pointer.x) / DRAG, this.level + (y - pointer.y) / DRAG);
      } else if (!others.length) {
        this.panBy(x - pointer.x, y - pointer.y);
      }
      pointer.x = x;
      pointer.y = y;
    }

    // Two fingers: what lies between them follows them.
    pinch(before, after, other) {
      const apart = (one) => Math.max(1, Math.hypot(one.x - other.x, one.y - other.y));
      this.panBy((after.x - before.x) / 2, (after.y - before.y) / 2);
      this.zoomBy(apart(after) / apart(before), (after.x + other.x) / 2, (after.y + other.y) / 2);
    }

    // Whether the key means something here.
    press(key) {
      const meanings = {
        w: () => this.windowTo(this.window * STEP, this.level),
        s: () => this.windowTo(this.window / STEP, this.level),
        d: () => this.windowTo(this.window, this.level + LEVEL_STEP),
        a: () => this.windowTo(this.window, this.level - LEVEL_STEP),
        i: () => this.invert(),
        r: () => this.reset(),
        "+": () => this.zoomBy(STEP),
        "=": () => this.zoomBy(STEP), // + without shift on many keyboards
        "-": () => this.zoomBy(1 / STEP),
        "[": () => this.opacityBy(-0.1),
        "]": () => this.opacityBy(0.1),
      };
      if (document.activeElement === this.stage) {
        Object.assign(meanings, {
          ArrowLeft: () => this.panBy(PAN_STEP, 0),
          ArrowRight: () => this.panBy(-PAN_STEP, 0),
          ArrowUp: () => this.panBy(0, PAN_STEP),
          ArrowDown: () => this.panBy(0, -PAN_STEP),
        });
      }
      const meaning = /^[0-9]$/.test(key) ? () => this.choose(Number(key)) : meanings[key];
      meaning?.();
      return Boolean(meaning);
    }
  }

  class PictureError extends Error {}

  const NOT_TYPED = ["radio", "checkbox", "range", "button", "submit"];
  const isTyping = (element) =>
    element.isContentEditable ||
    element.matches?.("textarea, select") ||
    (element.matches?.("input") && !NOT_TYPED.includes(element.type));

  const start = () => {
    const viewers = [...document.querySelectorAll(".viewer[data-grey]")].map((root) => new Viewer(root));
    if (!viewers.length) {
      return;
    }
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || isTyping(event.target)) {
        return;
      }
      const viewer = viewers.find((one) => one.root.contains(event.target)) ?? viewers[0];
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      if (viewer.press(key)) {
        event.preventDefault();
      }
    });
  };

  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", start);
  } else {
    start();
  }
})();
