//! Certificates for people, those in trouble first. Plain data in, text out.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::daemon::table::{Align, Cell, Table};
use crate::daemon::words::{dash, safe, span, until};
use crate::telemetry::line::Palette;
use crate::telemetry::status::{CertificateState, CertificateStatus, RenewBecause};

/// The answer of `edge certs`.
pub fn certificates(certificates: &[CertificateStatus], now: OffsetDateTime, colour: bool) -> String {
    let palette = Palette::new(colour);
    if certificates.is_empty() {
        return "no app needs a certificate\n".to_owned();
    }
    let mut sorted: Vec<_> = certificates.iter().collect();
    sorted.sort_by_key(|certificate| certificate_rank(certificate.state));
    let mut table = Table::new(
        &[
            ("CERTIFICATE", Align::Left),
            ("STATE", Align::Left),
            ("EXPIRES", Align::Right),
            ("NEXT", Align::Left),
            ("ISSUER", Align::Left),
        ],
        palette,
    );
    for certificate in sorted {
        table.row(vec![
            Cell::plain(safe(&certificate.name)),
            certificate_cell(certificate.state, palette),
            Cell::plain(expiry(certificate, now)),
            Cell::plain(next(certificate, now)),
            Cell::plain(match (&certificate.profile, certificate.issuer.as_str()) {
                (_, "") => dash(),
                (Some(profile), issuer) => safe(&format!("{issuer}, {profile}")),
                (None, issuer) => safe(issuer),
            }),
        ]);
        if let Some(error) = &certificate.last_error {
            table.note(safe(error), palette.warn);
        }
        let told =
            |record: &&String| certificate.last_error.as_ref().is_none_or(|error| !error.contains(*record));
        if let Some(record) = certificate.dns_record.as_ref().filter(told) {
            table.note(format!("to prove it by DNS for good, create: {}", safe(record)), palette.faint);
        }
    }
    table.print()
}

/// Whether a monitor may sleep: the certificate is there, clients accept it already, and it is not so close to its end that several
/// renewals must have failed.
pub fn is_well(certificate: &CertificateStatus, now: OffsetDateTime) -> bool {
    let time = |at: &Option<String>| at.as_deref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let Some(end) = time(&certificate.not_after) else { return false };
    let spare = match time(&certificate.renew_at) {
        // A third of what follows the moment of renewal is a tenth of the life.
        Some(renewal) => (end - renewal) / 3,
        None => time::Duration::days(10),
    };
    certificate.state != CertificateState::Expired && has_begun(certificate, now) && now + spare < end
}

fn next(certificate: &CertificateStatus, now: OffsetDateTime) -> String {
    match (&certificate.next_attempt, &certificate.renew_at) {
        (Some(at), _) => format!("tries in {}", until(at, now)),
        (None, Some(at)) => format!("renews in {}{}", until(at, now), because(certificate)),
        // One of the operator's, which edge does not renew.
        (None, None) if !has_begun(certificate, now) => match &certificate.not_before {
            Some(at) => format!("valid in {}", until(at, now)),
            None => dash(),
        },
        (None, None) => dash(),
    }
}

fn has_begun(certificate: &CertificateStatus, now: OffsetDateTime) -> bool {
    let begins = certificate.not_before.as_deref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    begins.is_none_or(|begins| begins <= now)
}

fn because(certificate: &CertificateStatus) -> &'static str {
    match certificate.renew_because {
        Some(RenewBecause::CaWindow) => ", in the CA's window",
        Some(RenewBecause::Asked) => ", as asked",
        Some(RenewBecause::Lifetime) if life(certificate) < Some(time::Duration::days(10)) => {
            ", half of its life"
        }
        Some(RenewBecause::Lifetime) => ", two thirds of its life",
        None => "",
    }
}

fn life(certificate: &CertificateStatus) -> Option<time::Duration> {
    let time = |at: &Option<String>| OffsetDateTime::parse(at.as_deref()?, &Rfc3339).ok();
    Some(time(&certificate.not_after)? - time(&certificate.not_before)?)
}

/// What is left, of how much.
fn expiry(certificate: &CertificateStatus, now: OffsetDateTime) -> String {
    let Some(at) = certificate.not_after.as_deref() else { return dash() };
    match life(certificate) {
        Some(life) => format!("{} of {}", until(at, now), span(life.whole_seconds().unsigned_abs())),
        None => until(at, now),
    }
}

fn certificate_rank(state: CertificateState) -> u8 {
    match state {
        CertificateState::Expired => 0,
        CertificateState::Parked => 1,
        CertificateState::Retrying => 2,
        CertificateState::Pending => 3,
        CertificateState::Valid => 4,
    }
}

fn certificate_cell(state: CertificateState, palette: Palette) -> Cell {
    let (word, colour) = match state {
        CertificateState::Expired => ("expired", palette.bad),
        CertificateState::Parked => ("parked", palette.bad),
        CertificateState::Retrying => ("retrying", palette.warn),
        CertificateState::Pending => ("pending", palette.warn),
        CertificateState::Valid => ("valid", palette.good),
    };
    Cell::coloured(word.to_owned(), colour)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::telemetry::status::OrderCounts;

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn certificate(name: &str, state: CertificateState) -> CertificateStatus {
        CertificateStatus {
            name: name.to_owned(),
            state,
            issuer: "Let's Encrypt E7".to_owned(),
            profile: Some("tlsserver".to_owned()),
            not_before: Some("2025-12-28T00:00:00Z".to_owned()),
            not_after: Some("2026-02-11T00:00:00Z".to_owned()),
            renew_at: Some("2026-01-12T00:00:00Z".to_owned()),
            renew_because: Some(RenewBecause::CaWindow),
            last_error: None,
            last_failure: None,
            next_attempt: None,
            dns_record: None,
            orders: OrderCounts::default(),
        }
    }

    #[test]
    fn those_in_trouble_come_first_with_the_reason() {
        let lacking = CertificateStatus {
            issuer: String::new(),
            not_after: None,
            renew_at: None,
            last_error: Some("no A record for shop.example.com\x1b[2J".to_owned()),
            next_attempt: Some("2026-01-01T05:00:00Z".to_owned()),
            ..certificate("shop.example.com", CertificateState::Retrying)
        };
        let both = [certificate("api.example.com", CertificateState::Valid), lacking];
        let expected = "\
CERTIFICATE       STATE        EXPIRES  NEXT                               ISSUER
shop.example.com  retrying           -  tries in 5h                        -
    ! no A record for shop.example.com\\u001b[2J
api.example.com   valid     41d of 45d  renews in 11d, in the CA's window  Let's Encrypt E7, tlsserver
";
        assert_eq!(certificates(&both, NOW, false), expected);
    }

    #[test]
    fn a_monitor_wakes_for_what_is_missing_or_close_to_its_end() {
        let good = certificate("a.example.com", CertificateState::Valid);
        assert!(is_well(&good, NOW));
        assert!(is_well(&good, datetime!(2026-01-31 23:00 UTC)), "one third of the last third is left");
        assert!(!is_well(&good, datetime!(2026-02-01 01:00 UTC)));
        let retrying = CertificateStatus { state: CertificateState::Retrying, ..good.clone() };
        assert!(is_well(&retrying, NOW), "there is time to try again");
        assert!(!is_well(&CertificateStatus { not_after: None, ..retrying }, NOW));
        let early = CertificateStatus { not_before: Some("2026-01-01T00:00:01Z".to_owned()), ..good.clone() };
        assert!(!is_well(&early, NOW), "clients refuse it");
        let early = CertificateStatus { renew_at: None, state: CertificateState::Pending, ..early };
        assert!(certificates(&[early], NOW, false).contains("  valid in 1s  "));
        let by_hand = CertificateStatus { renew_at: None, ..good };
        assert!(is_well(&by_hand, NOW) && !is_well(&by_hand, datetime!(2026-02-05 00:00 UTC)));
    }

    #[test]
    fn a_record_that_would_prove_a_name_for_good_is_printed_once() {
        let record =
            "_validation-persist.a.example. TXT \"ca.example; accounturi=https://ca.example/1\"".to_owned();
        let good = certificate("a.example", CertificateState::Valid);
        let lacking = CertificateStatus { dns_record: Some(record.clone()), ..good };
        let failed =
            CertificateStatus { last_error: Some(format!("Create it: {record} (why)")), ..lacking.clone() };
        for one in [lacking, failed] {
            assert_eq!(certificates(&[one], NOW, false).matches(&record).count(), 1);
        }
    }

    #[test]
    fn without_certificates_one_sentence_says_so() {
        assert_eq!(certificates(&[], NOW, true), "no app needs a certificate\n");
    }
}
