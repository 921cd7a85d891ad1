//! Small images of four shapes, placed and shaded at random.

use std::fs;
use std::path::Path;

use image::GrayImage;
use secateur::rng::Rng;

/// The shapes' names: class folders and the teacher's classes.
pub const NAMES: [&str; 4] = ["block", "columns", "ring", "rows"];
/// Height and width.
pub const SIDE: usize = 12;

/// A picture of shape `class`: bright lines on a dark, slightly noisy ground.
pub fn draw(class: usize, rng: &mut Rng) -> GrayImage {
    let (left, top) = (1 + rng.below(3), 1 + rng.below(3));
    let bright = rng.range(170.0, 250.0);
    let pixel = |x: u32, y: u32, noise: f32| {
        // Inside a square of 8 pixels, counted from its corner.
        let (x, y) = ((x as usize).wrapping_sub(left), (y as usize).wrapping_sub(top));
        let border = |i: usize| !(2..6).contains(&i);
        let lit = x < 8 && y < 8 && [true, x % 4 < 2, border(x) || border(y), y % 4 < 2][class];
        image::Luma([(if lit { bright } else { 20.0 } + noise) as u8])
    };
    GrayImage::from_fn(SIDE as u32, SIDE as u32, |x, y| pixel(x, y, rng.range(-15.0, 5.0)))
}

/// Writes `per_class` images of each shape into class folders below `folder`, PNG and JPEG in turn.
pub fn write_folders(folder: &Path, per_class: usize) {
    let mut rng = Rng::new(1);
    for (class, name) in NAMES.iter().enumerate() {
        fs::create_dir_all(folder.join(name)).unwrap();
        for index in 0..per_class {
            let extension = ["png", "jpg"][index % 2];
            draw(class, &mut rng).save(folder.join(name).join(format!("{index:02}.{extension}"))).unwrap();
        }
    }
}
