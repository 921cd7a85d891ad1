//! The shape rule: what each operation makes of its inputs' shapes.

use std::fmt;

use super::op::Op;

/// Shape of one image's activation, without the batch dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A feature map.
    Map {
        /// Channels.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// A feature vector.
    Vector(usize),
}

impl Shape {
    /// Channels of a map, length of a vector.
    pub const fn channels(self) -> usize {
        match self {
            Self::Map { channels, .. } => channels,
            Self::Vector(n) => n,
        }
    }

    /// Height and width; a vector counts as 1×1.
    pub const fn spatial(self) -> [usize; 2] {
        match self {
            Self::Map { height, width, .. } => [height, width],
            Self::Vector(_) => [1, 1],
        }
    }

    /// Number of values per image.
    pub const fn elements(self) -> u64 {
        let [h, w] = self.spatial();
        self.channels() as u64 * h as u64 * w as u64
    }

    /// The dimensions as a list, for messages and JSON.
    pub fn dims(self) -> Vec<usize> {
        match self {
            Self::Map { channels, height, width } => vec![channels, height, width],
            Self::Vector(n) => vec![n],
        }
    }

    fn with_map(self, channels: usize, spatial: [usize; 2]) -> Self {
        Self::Map { channels, height: spatial[0], width: spatial[1] }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { channels, height, width } => write!(f, "{channels}×{height}×{width}"),
            Self::Vector(n) => write!(f, "{n}"),
        }
    }
}

/// No activation or weight of a sane network has more values; guards all later size arithmetic against overflow.
const MAX_ELEMENTS: u64 = 1 << 32;
/// No layer of a sane network has more channels or features; bounds what the channel groups allocate per node.
const MAX_CHANNELS: usize = 1 << 24;

/// The product, or the largest number instead of an overflow.
fn product(dims: &[usize]) -> u64 {
    dims.iter().fold(1, |product, &d| product.saturating_mul(d as u64))
}

/// Output shape of `op` on `inputs`, or what does not fit.
pub(super) fn infer(op: &Op, inputs: &[Shape]) -> Result<Shape, String> {
    let arity = match op {
        Op::Input { .. } => Arity::Exactly(0),
        Op::Conv2d(_)
        | Op::Linear { .. }
        | Op::BatchNorm { .. }
        | Op::Activation { .. }
        | Op::MaxPool(_)
        | Op::AvgPool(_)
        | Op::GlobalAvgPool
        | Op::Subsample { .. }
        | Op::PadChannels { .. }
        | Op::Flatten
        | Op::Dropout { .. } => Arity::Exactly(1),
        Op::Scale => Arity::Exactly(2),
        Op::Add | Op::Concat => Arity::AtLeast(2),
    };
    arity.check(inputs.len())?;
    let first = inputs.first().copied().unwrap_or(Shape::Vector(0));
    let mut weights = 0;
    let out = match op {
        Op::Input { shape: [c, h, w] } => Shape::Map { channels: *c, height: *h, width: *w },
        Op::Conv2d(conv) => {
            let (channels, spatial) = map(first)?;
            let g = conv.groups;
            if g == 0 || channels % g != 0 || conv.out_channels % g != 0 {
                return Err(format!(
                    "groups={g} does not divide {channels} input and {} output channels",
                    conv.out_channels
                ));
            }
            let size = conv.output_size(spatial).ok_or_else(|| {
                format!("kernel {:?} with stride {:?} does not fit input {first}", conv.kernel, conv.stride)
            })?;
            weights = product(&[conv.out_channels, channels / g, conv.kernel[0], conv.kernel[1]]);
            first.with_map(conv.out_channels, size)
        }
        Op::Linear { out_features, .. } => match first {
            Shape::Vector(features) => {
                weights = product(&[*out_features, features]);
                Shape::Vector(*out_features)
            }
            Shape::Map { .. } => return Err(format!("expected a vector (flatten first), got {first}")),
        },
        Op::BatchNorm { eps } => {
            if !(eps.is_finite() && *eps > 0.0) {
                return Err(format!("eps must be positive, got {eps}"));
            }
            map(first)?;
            first
        }
        Op::Activation { .. } => first,
        Op::Dropout { p } => {
            if !(0.0..1.0).contains(p) {
                return Err(format!("p must be in [0, 1), got {p}"));
            }
            first
        }
        Op::MaxPool(pool) | Op::AvgPool(pool) => {
            let (channels, spatial) = map(first)?;
            let p = pool.padding;
            if p.top.max(p.bottom) >= pool.kernel[0] || p.left.max(p.right) >= pool.kernel[1] {
                return Err(format!("padding must be smaller than the window {:?}", pool.kernel));
            }
            let size = pool.output_size(spatial).ok_or_else(|| {
                format!("window {:?} with stride {:?} does not fit input {first}", pool.kernel, pool.stride)
            })?;
            first.with_map(channels, size)
        }
        Op::GlobalAvgPool => first.with_map(map(first)?.0, [1, 1]),
        Op::Subsample { stride: [sh, sw] } => {
            let (channels, [h, w]) = map(first)?;
            if *sh == 0 || *sw == 0 {
                return Err("stride must be at least 1".into());
            }
            first.with_map(channels, [h.div_ceil(*sh), w.div_ceil(*sw)])
        }
        Op::PadChannels { before, after } => {
            let (channels, spatial) = map(first)?;
            let total = channels.checked_add(*before).and_then(|c| c.checked_add(*after));
            first.with_map(total.ok_or("channel count overflows")?, spatial)
        }
        Op::Add => match inputs.iter().find(|s| **s != first) {
            None => first,
            Some(other) => return Err(format!("inputs differ: {first} and {other}")),
        },
        Op::Scale => {
            let gate = inputs.get(1).copied().unwrap_or(first);
            if gate != first.with_map(map(first)?.0, [1, 1]) {
                return Err(format!("expected a gate of {}×1×1 for {first}, got {gate}", first.channels()));
            }
            first
        }
        Op::Concat => {
            let (_, spatial) = map(first)?;
            let mut channels = 0usize;
            for input in inputs {
                if map(*input)?.1 != spatial {
                    return Err(format!("inputs differ in size: {first} and {input}"));
                }
                channels = channels.saturating_add(input.channels());
            }
            first.with_map(channels, spatial)
        }
        Op::Flatten => Shape::Vector(usize::try_from(first.elements()).map_err(|_| "too large".to_string())?),
    };
    let elements = product(&out.dims());
    if elements == 0 {
        return Err(format!("output {out} is empty"));
    }
    if elements > MAX_ELEMENTS {
        return Err(format!("output {out} has more than {MAX_ELEMENTS} values"));
    }
    if out.channels() > MAX_CHANNELS {
        return Err(format!("output {out} has more than {MAX_CHANNELS} channels"));
    }
    if weights > MAX_ELEMENTS {
        return Err(format!("its weight has more than {MAX_ELEMENTS} values"));
    }
    Ok(out)
}

fn map(shape: Shape) -> Result<(usize, [usize; 2]), String> {
    match shape {
        Shape::Map { channels, height, width } => Ok((channels, [height, width])),
        Shape::Vector(n) => Err(format!("expected a map, got a vector of {n}")),
    }
}

enum Arity {
    Exactly(usize),
    AtLeast(usize),
}

impl Arity {
    fn check(&self, got: usize) -> Result<(), String> {
        match *self {
            Self::Exactly(n) if got != n => Err(format!("expected {n} inputs, got {got}")),
            Self::AtLeast(n) if got < n => Err(format!("expected at least {n} inputs, got {got}")),
            Self::Exactly(_) | Self::AtLeast(_) => Ok(()),
        }
    }
}
