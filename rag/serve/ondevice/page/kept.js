// What the page remembers: settings and times in localStorage, an API key in this tab only. A browser that refuses either
// costs only the remembering.

const NAME = "smallfirst-ondevice";

function read(store, name) {
  try {
    return JSON.parse(store().getItem(name)) ?? {};
  } catch {
    return {};
  }
}

function write(store, name, value) {
  try {
    store().setItem(name, JSON.stringify(value));
  } catch {
    // Nothing is lost but at the next visit.
  }
}

const long = () => window.localStorage;
const short = () => window.sessionStorage;

/** Settings by name. */
export const settings = () => read(long, NAME);

export function keepSettings(changed) {
  write(long, NAME, { ...settings(), ...changed });
}

/** Of one model's file, run in one way (else the last one): `server`, `storage` and `memory`, each {weights_ms, compile_ms,
 * load_ms, gpu}, the newest of its kind; `weights_ms` is null where there was nothing to measure. */
export function times(file, way) {
  const all = read(long, `${NAME}-times`);
  return all[file]?.[way ?? all[file].last] ?? {};
}

export function keepTimes(file, way, from, measured) {
  const all = read(long, `${NAME}-times`);
  all[file] = { ...all[file], last: way, [way]: { ...all[file]?.[way], [from]: measured } };
  write(long, `${NAME}-times`, all);
}

export const key = () => read(short, `${NAME}-key`).key ?? "";

export function keepKey(value) {
  write(short, `${NAME}-key`, { key: value });
}
