// Small helpers for the document.

export const $ = id => document.getElementById(id);

// An element with properties; `class`, `data-*`, `aria-*` and `role` are attributes, functions are listeners.
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "for" || name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes))
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function vars(element, values) {
  for (const [name, value] of Object.entries(values)) element.style.setProperty(`--${name}`, value);
  return element;
}

// A function that waits; it returns false if it was called again meanwhile.
export function debounced(wait) {
  let last = 0;
  return async () => {
    const own = ++last;
    await new Promise(resolve => setTimeout(resolve, wait));
    return own === last;
  };
}

export function save(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// A token's text with its spaces, line ends and control characters visible.
export function visible(text) {
  return text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "·").replace(/[\0-\x1f\x7f]/g, letter =>
    letter === "\x7f" ? "␡" : String.fromCharCode(0x2400 + letter.charCodeAt(0)));
}

export function percent(share, digits = 2) {
  if (share === 0) return "0%";
  if (share > 0 && share < 0.5 * 10 ** (-digits - 2)) return `<${(10 ** -digits).toFixed(digits)}%`;
  return `${(100 * share).toFixed(digits)}%`;
}
