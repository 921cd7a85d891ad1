//! Classes that hardly come among the images, and what a student of such images may cost.
//!
//! Training answers other images with a class that is not among them, or forgets it, and nothing that the trained network
//! says of these images tells. What the teacher that is not trained yet says does. It is blind to some classes, too, where
//! much is to be gained: so what may be lost is held against what training may have repaired.

use std::fmt;

/// Most classes that are named.
const MOST_NAMED: usize = 3;
/// A class with this share, relative to an even one, comes.
const COMES: f64 = 0.25;
/// So many of the classes that images have on average do not come by chance.
const FAR_TOO_FEW: f64 = 0.5;

/// Classes that hardly come, the rarest first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RareClasses<'a> {
    classes: Vec<usize>,
    names: &'a [String],
    /// Share of the commonest of them, relative to an even one.
    most: f64,
    /// Expected of each.
    least: f64,
    images: usize,
    /// How many classes there are.
    all: usize,
}

impl<'a> RareClasses<'a> {
    /// Those of `shares`, relative to an even share of so many `images`, that have less than `least`; none if none has. One
    /// standard error below is no reason, for a few images have few of each class; but they do not have few classes.
    pub fn of(shares: &[f64], names: &'a [String], images: usize, least: f64) -> Option<Self> {
        let even = images as f64 / shares.len() as f64;
        let coming = shares.iter().filter(|&&share| share >= COMES).count() as f64;
        let far_too_few = coming < FAR_TOO_FEW * classes_expected(shares.len(), images);
        let forgiving = least - (least / even).sqrt();
        let least = if far_too_few { forgiving.max(least.min(COMES)) } else { forgiving };
        // A share that is no number is rare.
        let mut rare: Vec<(usize, f64)> =
            shares.iter().copied().enumerate().filter(|(_, share)| share.is_nan() || *share < least).collect();
        rare.sort_by(|a, b| a.1.total_cmp(&b.1));
        let most = rare.last()?.1;
        let classes = rare.into_iter().map(|(class, _)| class).collect();
        Some(Self { classes, names, most, least, images, all: shares.len() })
    }

    /// What may be lost of a test in which all classes come equally: these classes, in 0 to 1.
    pub fn at_stake(&self) -> f64 {
        self.classes.len() as f64 / self.all as f64
    }

    /// What training may have repaired, as a fraction of the images: those that it answers `after` otherwise than `before`,
    /// where each answer stands with the probability that it was right. One that is now answered with one of these classes
    /// was repaired if the former answer was wrong and harmed if it was right. Not more than were `wrong` before, by an
    /// estimate.
    pub fn repaired(&self, before: &[(u32, f64)], after: &[u32], wrong: f64) -> f64 {
        let rare = |class: u32| self.classes.contains(&(class as usize));
        let changed = before.iter().zip(after).filter(|((before, _), after)| before != *after);
        let net: f64 = changed.map(|((_, right), &after)| if rare(after) { 1.0 - 2.0 * right } else { 1.0 }).sum();
        (net / after.len() as f64).min(wrong)
    }

    /// What is wrong if they may cost more than was `repaired`.
    pub fn complaint(&self, repaired: f64) -> Option<String> {
        (repaired.is_nan() || repaired < self.at_stake()).then(|| {
            format!(
                "{self}: {:.1} % of all classes may be forgotten or seen in other images, and training repaired at most {:.1} % \
                 of the images; bring images of all classes (--min-class-share 0 asks for none: then measure with labels)",
                100.0 * self.at_stake(),
                100.0 * repaired.max(0.0)
            )
        })
    }
}

/// How many of `all` classes that come equally so many images have, on average.
fn classes_expected(all: usize, images: usize) -> f64 {
    let all = all as f64;
    all * (1.0 - (1.0 - 1.0 / all).powf(images as f64))
}

impl fmt::Display for RareClasses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |class: usize| self.names.get(class).map_or_else(|| class.to_string(), |name| format!("{name:?}"));
        let named: Vec<String> = self.classes.iter().take(MOST_NAMED).map(|&class| name(class)).collect();
        match &self.classes[..] {
            [_] => write!(f, "class {} seems to have", named[0])?,
            [_, _] | [_, _, _] => write!(f, "classes {} seem to have at most", named.join(", "))?,
            all => write!(f, "classes {} and {} more seem to have at most", named.join(", "), all.len() - named.len())?,
        }
        let Self { most, images, least, .. } = self;
        write!(f, " {most:.2} of an even share of the {images} images, expected at least {least:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["bike", "mug", "pen", "ruler", "speaker"].map(String::from).to_vec()
    }

    fn said(shares: &[f64], images: usize, least: f64) -> Option<String> {
        RareClasses::of(shares, &names(), images, least).map(|rare| rare.to_string())
    }

    #[test]
    fn a_rare_class_is_named() {
        let rare = [1.4, 0.2, 1.4];
        assert_eq!(said(&rare, 10_000, 0.2), None);
        let text = said(&rare, 10_000, 0.25).unwrap();
        assert_eq!(
            text,
            "class \"mug\" seems to have 0.20 of an even share of the 10000 images, expected at least 0.24"
        );
        assert_eq!(said(&rare, 32, 0.25), None, "of 32 images it may be chance");
        assert!(said(&[1.0, f64::NAN], 10_000, 0.25).unwrap().contains("NaN"));
    }

    #[test]
    fn of_many_the_rarest_are_named() {
        let text = said(&[2.5, 0.1, 0.0, 2.4], 10_000, 0.25).unwrap();
        assert!(text.starts_with("classes \"pen\", \"mug\" seem to have at most 0.10 of an even share"), "{text}");
        let text = said(&[0.0, 0.03, 0.02, 0.01, 4.9], 10_000, 0.25).unwrap();
        assert!(
            text.starts_with("classes \"bike\", \"ruler\", \"pen\" and 1 more seem to have at most 0.03"),
            "{text}"
        );
        assert!(said(&[0.0; 9], 10_000, 0.25).unwrap().starts_with("classes \"bike\", \"mug\", \"pen\" and 6 more"));
    }

    #[test]
    fn few_images_do_not_have_few_classes() {
        let names = names();
        let of_ten = |classes: usize| (0..10).map(move |c| if c < classes { 10.0 / classes as f64 } else { 0.0 });
        let at_stake = |classes, images, least| {
            let shares: Vec<f64> = of_ten(classes).collect();
            RareClasses::of(&shares, &names, images, least).map(|rare| rare.at_stake())
        };
        // 8 images have 5.7 of ten classes on average, 32 have 9.7.
        assert_eq!(at_stake(1, 8, 0.25), Some(0.9));
        assert_eq!((at_stake(2, 8, 0.25), at_stake(3, 8, 0.25)), (Some(0.8), None));
        assert_eq!((at_stake(4, 32, 0.25), at_stake(5, 32, 0.25)), (Some(0.6), None));
        assert_eq!(at_stake(1, 2, 0.25), None, "two images may be of one class by chance");
        assert_eq!(at_stake(1, 8, 0.0), None, "nothing was asked");
        assert_eq!((at_stake(10, 100, 1.0), at_stake(2, 8, 1.0)), (None, Some(0.8)));
    }

    #[test]
    fn a_loss_is_held_against_what_was_repaired() {
        let names = names();
        let rare = RareClasses::of(&[1.3, 1.3, 1.2, 1.2, 0.0], &names, 10_000, 0.25).unwrap();
        assert_eq!(rare.at_stake(), 0.2);
        let classes = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1];
        let before = |right: f64| classes.map(|class| (class, right));
        let sure = before(1.0);
        assert_eq!(rare.repaired(&sure, &classes, 1.0), 0.0);
        assert!(rare.complaint(0.0).is_some());
        let three_others = [1, 2, 3, 3, 0, 1, 2, 3, 0, 1];
        assert_eq!(rare.repaired(&sure, &three_others, 1.0), 0.3);
        assert_eq!(rare.repaired(&sure, &three_others, 0.05), 0.05, "what was right cannot be repaired");
        assert_eq!(rare.complaint(0.3), None);
        let two_of_them_rare = [1, 2, 3, 4, 4, 1, 2, 3, 0, 1];
        assert_eq!(rare.repaired(&sure, &two_of_them_rare, 1.0), 0.1);
        assert_eq!(rare.repaired(&before(0.5), &two_of_them_rare, 1.0), 0.3, "half of the two were wrong before");
        let text = rare.complaint(0.1).unwrap();
        assert!(text.contains(": 20.0 % of all classes may") && text.contains("repaired at most 10.0 % of"), "{text}");
        assert!(rare.complaint(f64::NAN).is_some());
    }
}
