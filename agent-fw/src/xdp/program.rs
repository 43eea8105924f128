//! A policy's programs in the kernel: the one for XDP, and the same for the tc hook where that is
//! needed.

use super::error::XdpError;
use super::pin::{Enforced, Pin, failed};
use aya::maps::{Map, MapData};
use aya::programs::{SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;

/// The programs of one policy, as they are pinned.
pub(super) struct Programs {
    enforced: Enforced,
    xdp: Option<Xdp>,
    classifier: Option<SchedClassifier>,
    /// The list by which they know this host's frames.
    own: Option<MapData>,
}

impl Programs {
    /// Those that are pinned for a policy; `None` where none is.
    pub(super) fn open(enforced: Enforced) -> Result<Option<Self>, XdpError> {
        let path = Pin::Program(enforced).path();
        let xdp = path.exists().then(|| Xdp::from_pin(&path, XdpAttachType::Interface));
        let xdp = xdp.transpose().map_err(failed(&path, "cannot be read"))?;
        let path = Pin::Classifier(enforced).path();
        let classifier = path.exists().then(|| SchedClassifier::from_pin(&path));
        let classifier = classifier.transpose().map_err(failed(&path, "cannot be read"))?;
        let path = Pin::OwnFrames(enforced).path();
        let own = path.exists().then(|| MapData::from_pin(&path));
        let own = own.transpose().map_err(failed(&path, "cannot be read"))?;
        let is_something = xdp.is_some() || classifier.is_some();
        Ok(is_something.then_some(Self { enforced, xdp, classifier, own }))
    }

    /// Those of whatever policy was installed before.
    pub(super) fn of_before() -> Result<Option<Self>, XdpError> {
        let enforced = Pin::list()?.into_iter().find_map(|pin| match pin {
            Pin::Program(enforced) | Pin::Classifier(enforced) => Some(enforced),
            _ => None,
        });
        enforced.map_or(Ok(None), Self::open)
    }

    /// The new policy's programs, just loaded. They replace what had their pins.
    pub(super) fn pinned(
        enforced: Enforced,
        xdp: Option<&mut Xdp>,
        classifier: Option<&mut SchedClassifier>,
        own: &Map,
    ) -> Result<Self, XdpError> {
        let mut programs = Self { enforced, xdp: None, classifier: None, own: None };
        programs.unpin()?;
        if let Some(xdp) = xdp {
            let path = Pin::Program(enforced).path();
            xdp.pin(&path).map_err(failed(&path, "cannot be pinned"))?;
        }
        if let Some(classifier) = classifier {
            let path = Pin::Classifier(enforced).path();
            classifier.pin(&path).map_err(failed(&path, "cannot be pinned"))?;
        }
        let path = Pin::OwnFrames(enforced).path();
        own.pin(&path).map_err(failed(&path, "cannot be pinned"))?;
        if let Some(opened) = Self::open(enforced)? {
            programs = opened;
        }
        Ok(programs)
    }

    /// Removes the pins. The programs stay while this value or an interface has them.
    pub(super) fn unpin(&self) -> Result<(), XdpError> {
        self.pins().iter().try_for_each(Pin::remove)
    }

    /// Makes the pins again.
    pub(super) fn pin(&mut self) -> Result<(), XdpError> {
        self.unpin()?;
        if let Some(xdp) = &mut self.xdp {
            let path = Pin::Program(self.enforced).path();
            xdp.pin(&path).map_err(failed(&path, "cannot be pinned"))?;
        }
        if let Some(classifier) = &mut self.classifier {
            let path = Pin::Classifier(self.enforced).path();
            classifier.pin(&path).map_err(failed(&path, "cannot be pinned"))?;
        }
        if let Some(own) = &self.own {
            let path = Pin::OwnFrames(self.enforced).path();
            own.pin(&path).map_err(failed(&path, "cannot be pinned"))?;
        }
        Ok(())
    }

    /// The pins.
    pub(super) fn pins(&self) -> [Pin; 3] {
        [Pin::Program, Pin::Classifier, Pin::OwnFrames].map(|pin| pin(self.enforced))
    }

    /// The program for XDP.
    pub(super) fn xdp(&mut self) -> Result<&mut Xdp, XdpError> {
        self.xdp.as_mut().ok_or(XdpError::NotPinned)
    }

    /// The program for the tc hook.
    pub(super) fn classifier(&mut self) -> Result<&mut SchedClassifier, XdpError> {
        self.classifier.as_mut().ok_or(XdpError::NotPinned)
    }
}
