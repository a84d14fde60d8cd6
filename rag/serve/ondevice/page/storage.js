// The browser's own storage for files (OPFS): weights are kept there from one visit to the next.
//
// It knows files and their sizes, not what is in them. A file is found only when it was written whole: until then it has
// another name, under which a part of it waits for the rest, or, in a browser that cannot rename, no bytes. Two pages must
// not write one file at a time; that is for who writes. Whatever a browser refuses is a `Refused`, and the page goes on
// without storage.

const FOLDER = "smallfirst-weights";
// What was written since is lost with the tab. Each time all that there is gets copied, so it is done at twice as many
// bytes, and not where they come quickly.
const SAFE_MS = 5000;

export class Refused extends Error {}

async function folder(create = false) {
  try {
    if (!navigator.storage?.getDirectory) throw new Refused("");
    const root = await navigator.storage.getDirectory();
    return await root.getDirectoryHandle(FOLDER, { create });
  } catch (error) {
    if (error.name === "NotFoundError") return null;
    throw error instanceof Refused ? error : new Refused(error.message || error.name);
  }
}

const partOf = (name) => `${name}.part`;

/** The file of that name; null where there is none. */
export async function find(name) {
  try {
    const handle = await (await folder())?.getFileHandle(name);
    const file = await handle?.getFile();
    return file?.size ? file : null;
  } catch (error) {
    if (error.name === "NotFoundError") return null;
    throw error instanceof Refused ? error : new Refused(error.message || error.name);
  }
}

/** Is there room for so many bytes, as far as the browser tells? */
export async function roomFor(bytes) {
  try {
    const { quota, usage } = await navigator.storage.estimate();
    return quota - usage > bytes;
  } catch {
    return true;
  }
}

/** Is there anything of any file? */
export async function holds() {
  try {
    for await (const handle of (await folder())?.values() ?? []) if ((await handle.getFile()).size) return true;
  } catch {
    // Then there is nothing that could be used, or deleted.
  }
  return false;
}

/** A file to be written: `write(chunk)`, then `close()` for the whole file, `keep()` for a part that the next `create` goes
 * on with, or `abort()` for none. It goes on after `begun` bytes, unless `restart()` throws those away. */
export async function create(name) {
  try {
    const home = await folder(true);
    const renames = "move" in FileSystemFileHandle.prototype;
    const part = renames ? partOf(name) : name;
    const handle = await home.getFileHandle(part, { create: true });
    if (!handle.createWritable) throw new Refused("");
    const begun = renames ? (await handle.getFile()).size : 0;
    let safe = begun;
    let size = begun;
    let writable = null;
    let opened = 0;
    const open = async () => {
      opened = performance.now();
      writable = await handle.createWritable({ keepExistingData: safe > 0 });
      if (safe) await writable.seek(safe);
    };
    await open();
    const abort = async () => {
      await writable.abort().catch(() => {});
      await remove(part);
    };
    return {
      begun,
      write: async (chunk) => {
        await writable.write(chunk);
        size += chunk.length;
        if (!renames || performance.now() - opened < SAFE_MS || size < 2 * safe) return;
        await writable.close();
        safe = size;
        await open();
      },
      restart: async () => {
        await writable.truncate(0); // to which the place to write at goes back, too
        safe = size = 0;
      },
      abort,
      keep: async () => {
        if (!renames) return abort();
        await writable.close().catch(() => {}); // then what was safe before is kept
        const kept = await handle.getFile().catch(() => null);
        if (!kept?.size) await remove(part);
      },
      close: async () => {
        await writable.close();
        if (renames) {
          await remove(name); // a former one, which was not whole
          await handle.move(name);
        }
        return handle.getFile();
      },
    };
  } catch (error) {
    throw error instanceof Refused ? error : new Refused(error.message || error.name);
  }
}

/** Forget what was kept of it. */
export const removePart = (name) => remove(partOf(name));

export async function remove(name) {
  try {
    await (await folder())?.removeEntry(name);
  } catch {
    // It was not there, or nothing ever is.
  }
}

/** Forget all weights. Raises Refused where they stay. */
export async function clear() {
  try {
    if (!navigator.storage?.getDirectory) throw new Refused("");
    const root = await navigator.storage.getDirectory();
    await root.removeEntry(FOLDER, { recursive: true });
  } catch (error) {
    if (error instanceof Refused) throw error;
    if (error.name !== "NotFoundError") throw new Refused(error.message || error.name);
  }
}
