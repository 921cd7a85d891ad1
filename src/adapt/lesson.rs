//! What a network learns from images without labels: pseudo labels, or a teacher's answers.

use std::collections::HashMap;

use candle_core::Tensor;

use super::checkpoint::Sections;
use super::config::AdaptConfig;
use super::pass::Answers;
use crate::Result;
use crate::loss;

/// The rows of [`loss::PseudoLabels`] by source index: a class for each image, and how much it counts.
#[derive(Debug, Default)]
pub(super) struct ImageLabels(HashMap<usize, (u32, f32)>);

impl ImageLabels {
    /// Those of a network's own answers.
    ///
    /// # Errors
    /// As [`loss::pseudo_labels`].
    pub fn of(answers: &Answers) -> Result<Self> {
        let labels = loss::pseudo_labels(&answers.features, &answers.logits)?;
        let weights = labels.confidence_weights(answers.logits.dim(1)?);
        let rows = answers.indices.iter().zip(labels.labels.iter().zip(weights));
        Ok(Self(rows.map(|(&index, (&label, weight))| (index, (label, weight))).collect()))
    }

    /// L = information maximisation + `weight`·CE of these labels, and its two terms; images without a label count in the
    /// first alone.
    ///
    /// # Shapes
    /// Raw logits `[N, C]` of the images at the N `indices`; scalars.
    ///
    /// # Errors
    /// As [`loss::information_maximisation`] and [`loss::cross_entropy`].
    pub fn loss(&self, logits: &Tensor, indices: &[usize], weight: f64) -> Result<(Tensor, [Tensor; 2])> {
        let rows = indices.iter().map(|i| self.0.get(i).copied().unwrap_or((0, 0.0)));
        let (labels, weights): (Vec<u32>, Vec<f32>) = rows.unzip();
        let labels = Tensor::from_vec(labels, indices.len(), logits.device())?;
        let weights = Tensor::from_vec(weights, indices.len(), logits.device())?;
        let information = loss::information_maximisation(logits)?;
        let pseudo = loss::cross_entropy(logits, &labels, Some(&weights))?;
        Ok(((&information + (&pseudo * weight)?)?, [information, pseudo]))
    }

    /// Adds them to a checkpoint.
    pub fn save(&self, into: &mut Sections) -> Result<()> {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_unstable_by_key(|(index, _)| **index);
        // f32 holds indices and classes exactly up to 2²⁴, far beyond what a board stores.
        into.put_list("labels", "index", &rows.iter().map(|(i, _)| **i as f32).collect::<Vec<_>>())?;
        into.put_list("labels", "class", &rows.iter().map(|(_, (c, _))| *c as f32).collect::<Vec<_>>())?;
        into.put_list("labels", "weight", &rows.iter().map(|(_, (_, w))| *w).collect::<Vec<_>>())
    }

    /// Those of a checkpoint.
    pub fn load(from: &Sections) -> Result<Self> {
        let indices = from.get_list("labels", "index")?;
        let classes = from.get_list("labels", "class")?;
        let weights = from.get_list("labels", "weight")?;
        let rows = indices.into_iter().zip(classes).zip(weights);
        Ok(Self(rows.map(|((i, c), w)| (i as usize, (c as u32, w))).collect()))
    }
}

/// Softening of teacher and student in distillation.
const TEMPERATURE: f64 = 2.0;
/// Weight of the teacher's classes beside distillation.
const CLASS_WEIGHT: f64 = 0.5;

/// L_sup = T²·KL(softmax(t/T) ‖ softmax(s/T)) + ½·mean(ω·CE(s, argmax t)), ω the teacher's confidence above chance.
///
/// # Shapes
/// Raw logits `[N, C]`; gradient flows into `student` only.
pub(super) fn imitation(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (labels, weights) = loss::teacher_labels(teacher)?;
    let labelled = loss::cross_entropy(student, &labels, Some(&weights))?;
    Ok((loss::distillation(student, teacher, TEMPERATURE)? + (labelled * CLASS_WEIGHT)?)?)
}

/// What a pruned student learns from.
#[derive(Debug)]
pub(super) enum Lesson<'a> {
    /// The adapted teacher's answers: distillation.
    Answers(&'a Answers),
    /// The adapted teacher's pseudo labels, of this weight beside information maximisation: phase 1's loss.
    PseudoLabels(ImageLabels, f64),
}

impl<'a> Lesson<'a> {
    /// The one that `config` asks for.
    ///
    /// # Errors
    /// As [`ImageLabels::of`].
    pub fn new(teacher: &'a Answers, config: &AdaptConfig) -> Result<Self> {
        match config.distillation {
            true => Ok(Self::Answers(teacher)),
            false => Ok(Self::PseudoLabels(ImageLabels::of(teacher)?, config.teacher.pseudo_label_weight)),
        }
    }

    /// The student's loss on the images at `indices`, and its name.
    ///
    /// # Shapes
    /// Raw logits `[N, C]`; a scalar.
    ///
    /// # Errors
    /// [`crate::Error::Data`] if answers are learnt and the teacher did not answer an image of the batch; as the losses.
    pub fn loss(&self, logits: &Tensor, indices: &[usize]) -> Result<(&'static str, Tensor)> {
        match self {
            Self::Answers(teacher) => {
                let teacher = teacher.logits_of(indices)?.to_device(logits.device())?;
                Ok(("imitation", imitation(logits, &teacher)?))
            }
            Self::PseudoLabels(labels, weight) => Ok(("transfer", labels.loss(logits, indices, *weight)?.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Four images of two classes; the last is nearer to the first class by features than by its logits.
    fn answers() -> Answers {
        let logits = Tensor::new(&[[4f32, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 0.1]], &Device::Cpu).unwrap();
        let features = Tensor::new(&[[1f32, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]], &Device::Cpu).unwrap();
        Answers::new(vec![7, 2, 9, 4], logits, features)
    }

    fn value(loss: &Tensor) -> f32 {
        loss.to_scalar().unwrap()
    }

    #[test]
    fn labels_survive_a_checkpoint() {
        let labels = ImageLabels::of(&answers()).unwrap();
        assert_eq!(labels.0, HashMap::from([(7, (0, 1.0)), (2, (0, 1.0)), (9, (1, 1.0)), (4, (0, 0.0))]));
        let mut sections = Sections::default();
        labels.save(&mut sections).unwrap();
        assert_eq!(ImageLabels::load(&sections).unwrap().0, labels.0);
        assert!(ImageLabels::load(&Sections::default()).unwrap().0.is_empty());
    }

    #[test]
    fn images_without_a_label_count_in_information_alone() {
        let labels = ImageLabels::of(&answers()).unwrap();
        let logits = Tensor::new(&[[1f32, 0.0], [0.0, 2.0]], &Device::Cpu).unwrap();
        let (total, [information, pseudo]) = labels.loss(&logits, &[7, 1000], 0.5).unwrap();
        let right = (1f32 + (-1f32).exp()).ln();
        assert!((value(&pseudo) * 2.0 - right).abs() < 1e-6, "{pseudo}");
        assert!((value(&total) - value(&information) - 0.5 * value(&pseudo)).abs() < 1e-6);
        let (total, [information, pseudo]) = labels.loss(&logits, &[4, 1000], 0.5).unwrap();
        assert_eq!((value(&pseudo), value(&total)), (0.0, value(&information)));
    }

    #[test]
    fn the_configuration_chooses_the_lesson() {
        let (teacher, mut config) = (answers(), AdaptConfig::for_input([1, 28, 28]));
        let logits = Tensor::new(&[[4f32, 0.0], [0.0, 0.1]], &Device::Cpu).unwrap();
        let loss = |config: &AdaptConfig| Lesson::new(&teacher, config).unwrap().loss(&logits, &[7, 4]).unwrap();
        let (name, distilled) = loss(&config);
        assert_eq!(name, "imitation");
        assert!((value(&distilled) - value(&imitation(&logits, &logits).unwrap())).abs() < 1e-6);
        config.distillation = false;
        let labels = ImageLabels::of(&teacher).unwrap();
        let (name, transfer) = loss(&config);
        assert_eq!(name, "transfer");
        assert_eq!(value(&transfer), value(&labels.loss(&logits, &[7, 4], 0.3).unwrap().0));
        assert!(Lesson::new(&teacher, &AdaptConfig::for_input([1, 28, 28])).unwrap().loss(&logits, &[7, 5]).is_err());
    }
}
