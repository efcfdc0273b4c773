//! Which certificates of another program edge takes over, and for which names: decides, and says why not.

use std::collections::BTreeSet;
use std::time::SystemTime;

use crate::cert::bundle::{BundleError, CertBundle};
use crate::cert::validity::Validity;
use crate::config::model::Tls;
use crate::name::{AppName, HostPattern};

/// One certificate that can be read.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Where it stands among all that was found.
    pub index: usize,
    /// The certificate.
    pub bundle: &'a CertBundle,
    /// Whether clients trust who issued it: neither a CA for tests nor one that another program made for itself.
    pub public: bool,
}

/// A name of the configuration.
#[derive(Debug, Clone)]
pub struct Configured {
    /// The name.
    pub name: HostPattern,
    /// Whose it is.
    pub app: AppName,
    /// Where its certificate comes from.
    pub tls: Tls,
}

/// What becomes of one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Planned {
    /// The name.
    pub name: HostPattern,
    /// The certificate to take, by its index, or why there is none.
    pub take: Result<usize, Skipped>,
}

/// Why a name is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Skipped {
    #[error("no app has this domain")]
    NotConfigured,
    #[error("apps.{app}.tls is not `auto`")]
    NotAuto { app: AppName },
    #[error("{0}")]
    Unfit(String),
    #[error("its CA is not one that clients trust, nor one that edge uses")]
    NotPublic,
}

/// For every name of the certificates and each name of the configuration that they cover: the one that is valid longest.
pub fn plan(candidates: &[Candidate<'_>], configured: &[Configured], now: SystemTime) -> Vec<Planned> {
    let names = candidates.iter().flat_map(|candidate| candidate.bundle.names());
    let mut wanted: BTreeSet<&HostPattern> = names.collect();
    let covered =
        |pattern: &&HostPattern| candidates.iter().any(|candidate| candidate.bundle.covers(pattern));
    wanted.extend(configured.iter().map(|known| &known.name).filter(covered));
    // A wildcard is told of where it serves none of the configured names.
    wanted.retain(|name| match name {
        HostPattern::Exact(_) => true,
        HostPattern::Wildcard(_) => {
            let serves = |known: &Configured| match &known.name {
                HostPattern::Exact(host) => name.covers(host),
                HostPattern::Wildcard(_) => false,
            };
            !configured.iter().any(serves) || configured.iter().any(|known| known.name == **name)
        }
    });
    let planned =
        |name: &HostPattern| Planned { name: name.clone(), take: choose(name, candidates, configured, now) };
    wanted.into_iter().map(planned).collect()
}

fn choose(
    name: &HostPattern,
    candidates: &[Candidate<'_>],
    configured: &[Configured],
    now: SystemTime,
) -> Result<usize, Skipped> {
    let known = configured.iter().find(|known| known.name == *name).ok_or(Skipped::NotConfigured)?;
    match &known.tls {
        Tls::Acme => {}
        Tls::Internal | Tls::Off | Tls::Files { .. } => {
            return Err(Skipped::NotAuto { app: known.app.clone() });
        }
    }
    let mut why = Skipped::NotConfigured;
    let mut best: Option<&Candidate<'_>> = None;
    for candidate in candidates.iter().filter(|candidate| candidate.bundle.covers(name)) {
        if !candidate.public {
            why = Skipped::NotPublic;
        } else if let Err(error) = candidate.bundle.check_kept(name, now) {
            why = Skipped::Unfit(error.to_string());
        } else if best.is_none_or(|best| end(best) < end(candidate)) {
            best = Some(candidate);
        }
    }
    best.map(|candidate| candidate.index).ok_or(why)
}

fn end(candidate: &Candidate<'_>) -> SystemTime {
    candidate.bundle.validity().not_after
}

/// Why the certificate that edge has is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Kept {
    #[error("edge has this certificate already")]
    Same,
    #[error("edge has a newer certificate")]
    Newer,
    #[error("edge has a certificate that is valid longer")]
    Longer,
}

/// Whether a certificate from elsewhere may take the place of `present`.
pub fn may_replace(
    present: Option<(Validity, &str)>,
    offered: (Validity, &str),
    now: SystemTime,
) -> Result<(), Kept> {
    let Some((present, serial)) = present else { return Ok(()) };
    if serial == offered.1 {
        return Err(Kept::Same);
    }
    if present.not_after <= now {
        return Ok(());
    }
    if present.not_before >= offered.0.not_before {
        return Err(Kept::Newer);
    }
    if present.not_after >= offered.0.not_after {
        return Err(Kept::Longer);
    }
    Ok(())
}

impl CertBundle {
    /// What a bundle that another program kept must fulfil: it names `wanted`, is in its time, and each certificate is signed by
    /// the next.
    pub fn check_kept(&self, wanted: &HostPattern, now: SystemTime) -> Result<(), BundleError> {
        if !self.covers(wanted) {
            return Err(BundleError::NameMissing { name: wanted.to_string() });
        }
        let Validity { not_before, not_after } = self.validity();
        if not_before > now {
            return Err(BundleError::NotYetValid);
        }
        if not_after <= now {
            return Err(BundleError::Ended);
        }
        self.check_chain()
    }
}
