// Converts an image to the JSON of a tensor, in the browser.

/** Returns the pixels of an image, stretched to the tensor's height and width without cropping. */
export async function pixelsOf(file, { width, height }, canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const bitmap = await createImageBitmap(file);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#000"; // the background of a transparent image
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height);
  return pixels.data;
}

/** Returns an image as the JSON of a tensor, with a batch of one. */
export function tensorOf(data, { layout, channels, height, width, is_scaled: isScaled }) {
  const value = (row, column, channel) => {
    const at = (row * width + column) * 4;
    const grey = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]; // ITU-R BT.601
    const level = channels === 1 ? Math.round(grey) : data[at + channel];
    return isScaled ? Number((level / 255).toFixed(6)) : level;
  };
  const list = (size, entry) => Array.from({ length: size }, (_, index) => entry(index));
  const image = (channel) => list(height, (row) => list(width, (column) => value(row, column, channel)));
  if (layout === "NHW") return JSON.stringify([image(0)]);
  if (layout === "NCHW") return JSON.stringify([list(channels, image)]);
  return JSON.stringify([list(height, (row) => list(width, (column) => list(channels, (channel) => value(row, column, channel))))]);
}

/** Draws the image in shades of grey, as it is sent. */
export function shadeGrey(canvas, data) {
  const context = canvas.getContext("2d");
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4) {
    const grey = Math.round(0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]);
    pixels.data.set([grey, grey, grey, 255], at);
  }
  context.putImageData(pixels, 0, 0);
}
