// The browser's own storage for files (OPFS): weights are kept there from one visit to the next.
//
// It knows files and their sizes, not what is in them. A file is found only when it was written whole: until then it has
// another name, or, in a browser that cannot rename, no bytes. Whatever a browser refuses is a `Refused`, and the page goes
// on without storage.

const FOLDER = "smallfirst-weights";

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

/** A file to be written: `write(chunk)`, then `close()` for the whole file, or `abort()` for none. */
export async function create(name) {
  try {
    const renames = "move" in FileSystemFileHandle.prototype;
    const begun = renames ? `${name}.part` : name;
    const handle = await (await folder(true)).getFileHandle(begun, { create: true });
    if (!handle.createWritable) throw new Refused("");
    const writable = await handle.createWritable();
    return {
      write: (chunk) => writable.write(chunk),
      abort: async () => {
        await writable.abort().catch(() => {});
        await remove(begun);
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
    const root = await navigator.storage.getDirectory();
    await root.removeEntry(FOLDER, { recursive: true });
  } catch (error) {
    if (error.name !== "NotFoundError") throw new Refused(error.message || error.name);
  }
}
