//! Targets that nobody would choose, and what adapting to them does to the network in use.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::names::by_name;
use super::settings::Settings;
use super::validation::{Judged, TOLERANCE_POINTS, Validation};
use crate::adapt::AdaptedBy;
use crate::adapt::gate::Verdict;
use crate::data::Source;
use crate::rng::Rng;
use crate::weights::write_bytes_atomic;
use crate::{Error, Result};

/// What a device may have collected instead of a fair sample of a task's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// 32 images.
    Few,
    /// None of one class.
    MissingClass,
    /// 80 % of one class.
    OneClass,
    /// Random pixels.
    Noise,
    /// All images, sorted by class.
    Sorted,
    /// The first quarter of the sorted images: a stream cut short, in which most classes have not come yet.
    Stream,
    /// Five adaptations in a row, each to another fifth of the images and from what the last one published.
    InARow,
}

/// Images of [`Case::Few`].
const FEW: usize = 32;
/// Most images of [`Case::Noise`].
const MOST_NOISE: usize = 2000;
/// Adaptations of [`Case::InARow`].
const ROUNDS: usize = 5;

impl Case {
    /// All cases.
    pub const ALL: [Self; 7] =
        [Self::Few, Self::MissingClass, Self::OneClass, Self::Noise, Self::Sorted, Self::Stream, Self::InARow];

    /// How many adaptations follow one another. Only the first prunes.
    pub const fn rounds(self) -> usize {
        if matches!(self, Self::InARow) { ROUNDS } else { 1 }
    }

    /// Writes the images of `round`, out of `source`, without labels and those that cannot be read; returns how many they are. The seed also draws the
    /// class that is missing or common.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no labels, if no image can be read or they differ in size; [`Error::Io`].
    pub fn write(self, source: &Source, round: usize, seed: u64, path: &Path) -> Result<usize> {
        let labels: Vec<usize> = (0..source.len()).filter_map(|index| source.label(index)).collect();
        if labels.len() < source.len() {
            return Err(Error::data(source.path(), "expected a label for every image, got images without"));
        }
        let chosen = self.choose(&labels, round, seed);
        let first = chosen.iter().find_map(|&index| source.decode(index).ok());
        let first = first.ok_or_else(|| Error::data(source.path(), "expected images that can be read, got none"))?;
        let size = [first.height(), first.width(), first.channels()];
        let mut written = 0;
        let mut pixels = Vec::with_capacity(chosen.len() * first.pixels().len());
        let mut rng = Rng::stream(seed, 0x4E4F_4953);
        for &index in &chosen {
            let image = match source.decode(index) {
                Ok(image) => image,
                Err(error) => {
                    log::warn!("a broken image is left out: {error}");
                    continue;
                }
            };
            written += 1;
            if [image.height(), image.width(), image.channels()] != size {
                return Err(Error::data(source.name(index), format!("expected an image of {size:?} as the first one")));
            }
            match self {
                Self::Noise => pixels.extend(image.pixels().iter().map(|_| rng.below(256) as u8)),
                _ => pixels.extend_from_slice(image.pixels()),
            }
        }
        let shape = [&[written][..], &size].concat();
        let bytes = TensorView::new(Dtype::U8, shape, &pixels)
            .and_then(|view| safetensors::serialize([("images", view)], None))
            .map_err(|e| Error::data(path, e.to_string()))?;
        write_bytes_atomic(path, &bytes)?;
        Ok(written)
    }

    /// Which images of these labels, in which order.
    fn choose(self, labels: &[usize], round: usize, seed: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        let class = seed as usize % labels.iter().max().map_or(1, |last| last + 1);
        match self {
            Self::Sorted | Self::Stream => order.sort_by_key(|&index| labels[index]),
            _ => Rng::stream(seed, 0x574F_5253).shuffle(&mut order),
        }
        match self {
            Self::Few => order.truncate(FEW),
            Self::MissingClass => order.retain(|&index| labels[index] != class),
            Self::OneClass => {
                let (common, mut others): (Vec<usize>, _) = order.iter().partition(|&&index| labels[index] == class);
                others.truncate(common.len().div_ceil(4));
                order = [common, others].concat();
            }
            Self::Noise => order.truncate(MOST_NOISE),
            Self::Sorted => {}
            Self::Stream => order.truncate(labels.len().div_ceil(4)),
            Self::InARow => order = order.into_iter().skip(round).step_by(ROUNDS).collect(),
        }
        order
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Few => "few",
            Self::MissingClass => "missing-class",
            Self::OneClass => "one-class",
            Self::Noise => "noise",
            Self::Sorted => "sorted",
            Self::Stream => "stream",
            Self::InARow => "in-a-row",
        })
    }
}

impl FromStr for Case {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for other names than those of [`Case::ALL`].
    fn from_str(text: &str) -> Result<Self> {
        by_name(Self::ALL, text)
    }
}

/// What an adaptation to a bad target came to. Accuracies are those on all images of the task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorstOutcome {
    /// The task's name.
    pub task: String,
    /// What was wrong.
    pub case: Case,
    /// Seed of every random draw.
    pub seed: u64,
    /// Which of the adaptations in a row, from 0.
    pub round: usize,
    /// Images adapted to.
    pub images: usize,
    /// Accuracy of the network that the student would replace.
    pub replaced: f64,
    /// The student's.
    pub accuracy: f64,
    /// What phase 1 ended with.
    pub adapted_by: AdaptedBy,
    /// The gate's verdict on the adapted teacher.
    pub teacher_gate: Verdict,
    /// The gate's verdict on the student: whether it is published.
    pub gate: Verdict,
    /// What else the runs were given.
    #[serde(flatten)]
    pub settings: Settings,
}

impl WorstOutcome {
    /// Whether both are of the same adaptation.
    pub fn is_again(&self, earlier: &Self) -> bool {
        let key = |o: &Self| (o.task.clone(), o.case, o.seed, o.round, o.settings.clone());
        key(self) == key(earlier)
    }

    /// Whether a student was published that should not have been.
    pub fn is_harmful(&self) -> bool {
        self.gate.accepted && self.accuracy < self.replaced - TOLERANCE_POINTS
    }

    pub(super) fn cells(&self) -> Vec<String> {
        let round = if self.case.rounds() > 1 { format!(" {}", self.round + 1) } else { String::new() };
        let verdict = match (self.gate.accepted, self.is_harmful()) {
            (_, true) => "published, **worse**".to_string(),
            (true, _) => "published".to_string(),
            (false, _) => format!("refused: {}", self.gate.reason),
        };
        vec![
            self.task.clone(),
            format!("{}{round}", self.case),
            self.seed.to_string(),
            self.images.to_string(),
            format!("{:.2}", self.replaced),
            format!("{:.2}", self.accuracy),
            format!("{:?}", self.adapted_by).to_lowercase(),
            format!("{:.3}", self.gate.agreement),
            verdict,
        ]
    }

    pub(super) const HEADER: [&'static str; 9] =
        ["task", "case", "seed", "images", "in use before", "student", "adapted by", "agreement", "gate"];
}

/// The gate's worth in bad cases: its verdicts beside the points that students lie above what they would replace.
pub(super) fn validation(outcomes: &[WorstOutcome]) -> Validation {
    let all: Vec<Judged> =
        outcomes.iter().map(|o| Judged { verdict: &o.gate, gain: o.accuracy - o.replaced }).collect();
    Validation::of(&all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SourceConfig;

    fn labels() -> Vec<usize> {
        (0..400).map(|index| index % 10).collect()
    }

    fn count(chosen: &[usize], class: usize) -> usize {
        chosen.iter().filter(|&&index| labels()[index] == class).count()
    }

    #[test]
    fn cases_are_what_they_are_called() {
        let choose = |case: Case, seed| case.choose(&labels(), 0, seed);
        assert_eq!(choose(Case::Few, 0).len(), 32);
        let missing = choose(Case::MissingClass, 3);
        assert_eq!((missing.len(), count(&missing, 3)), (360, 0));
        let common = choose(Case::OneClass, 3);
        assert_eq!((common.len(), count(&common, 3)), (50, 40));
        assert!(choose(Case::Sorted, 0).is_sorted_by_key(|&index| labels()[index]));
        let stream = choose(Case::Stream, 0);
        assert_eq!((stream.len(), count(&stream, 0), count(&stream, 2), count(&stream, 3)), (100, 40, 20, 0));
        let mut rounds: Vec<usize> = (0..5).flat_map(|round| Case::InARow.choose(&labels(), round, 1)).collect();
        rounds.sort_unstable();
        assert_eq!(rounds, (0..400).collect::<Vec<_>>(), "each image in one round");
    }

    #[test]
    fn names_are_those_of_the_folders() {
        for case in Case::ALL {
            assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
            assert_eq!(serde_json::to_value(case).unwrap(), case.to_string());
        }
        assert!("none".parse::<Case>().unwrap_err().to_string().contains("expected one of few, missing-class"));
    }

    #[test]
    fn images_are_written_without_labels() {
        let folder = tempfile::tempdir().unwrap();
        let mut images = vec![0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 2, 0, 0, 0, 2];
        images.extend((0..160).map(|byte| byte as u8));
        let labels: Vec<u8> = [&[0, 0, 8, 1, 0, 0, 0, 40][..], &[0, 1].repeat(20)].concat();
        let source = Source::idx_from_bytes("pairs", &images, Some(&labels)).unwrap();
        let path = folder.path().join("case.safetensors");
        let open = || Source::open(&path, &SourceConfig::default()).unwrap();
        assert_eq!(Case::Sorted.write(&source, 0, 0, &path).unwrap(), 40);
        assert_eq!((open().len(), open().label(0)), (40, None));
        assert_eq!(open().decode(1).unwrap().pixels(), source.decode(2).unwrap().pixels());
        assert_eq!(Case::Noise.write(&source, 0, 0, &path).unwrap(), 40);
        assert!((0..40).any(|index| open().decode(index).unwrap().pixels() != source.decode(index).unwrap().pixels()));
        let unlabelled = Source::idx_from_bytes("pairs", &images, None).unwrap();
        assert!(Case::Few.write(&unlabelled, 0, 0, &path).unwrap_err().to_string().contains("label"));
    }

    #[test]
    fn images_that_cannot_be_read_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let class = folder.path().join("images/zero");
        std::fs::create_dir_all(&class).unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            image::GrayImage::from_pixel(2, 2, image::Luma([7])).save(class.join(name)).unwrap();
        }
        std::fs::write(class.join("a.png"), b"no image").unwrap();
        let source = Source::open(folder.path().join("images"), &SourceConfig::default()).unwrap();
        let path = folder.path().join("case.safetensors");
        assert_eq!(Case::Sorted.write(&source, 0, 0, &path).unwrap(), 2);
        assert_eq!(Source::open(&path, &SourceConfig::default()).unwrap().len(), 2);
        for name in ["b.png", "c.png"] {
            std::fs::write(class.join(name), b"no image").unwrap();
        }
        let source = Source::open(folder.path().join("images"), &SourceConfig::default()).unwrap();
        let error = Case::Sorted.write(&source, 0, 0, &path).unwrap_err().to_string();
        assert!(error.contains("images that can be read"), "{error}");
    }
}
