//! Builders that turn torchvision and timm names into a [`Graph`](crate::graph::Graph).
