//! What the CA knows and decides: accounts, orders, authorizations, certificates.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    SerialNumber,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Fault, Step};

/// What the CA says about renewals.
#[derive(Debug, Clone)]
pub(crate) enum Ari {
    /// It offers nothing.
    Off,
    /// Two percent of a life, around its half or two thirds; to be asked again after that time.
    Usual(Duration),
    /// This window, for every certificate.
    Window(SystemTime, SystemTime),
}

/// One order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) name: String,
    pub(crate) ip: bool,
    pub(crate) status: &'static str,
    pub(crate) replaces: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) at: SystemTime,
    pub(crate) error: Option<Value>,
    pub(crate) challenge_error: Option<Value>,
    pub(crate) thumbprint: String,
    pub(crate) account: String,
    /// Kind of the challenge that was told.
    pub(crate) told: String,
    polls_left: u32,
}

/// All of it.
pub(crate) struct Books {
    pub(crate) faults: HashMap<Step, VecDeque<Fault>>,
    pub(crate) asked: HashMap<Step, usize>,
    pub(crate) ahead: Duration,
    pub(crate) orders: Vec<Order>,
    /// Public key of each account.
    pub(crate) accounts: Vec<Value>,
    pub(crate) issued: usize,
    pub(crate) life: Duration,
    pub(crate) ari: Ari,
    pub(crate) profiles: Vec<&'static str>,
    /// Answers to newOrder repeat what is replaced, as they must.
    pub(crate) echoes: bool,
    /// An order that repeats one that is still open is that one, as at Let's Encrypt; other CAs make another.
    pub(crate) reuses: bool,
    /// Polls of an order for which the issuance goes on.
    pub(crate) processing: u32,
    /// When it wants to be asked again meanwhile.
    pub(crate) poll_after: &'static str,
    /// Identifier and key of the account that others must be bound to.
    pub(crate) binding: Option<(&'static str, Vec<u8>)>,
    /// Whether its directory says so.
    pub(crate) tells_binding: bool,
    /// Kinds of challenge offered for each name.
    pub(crate) offers: Vec<&'static str>,
    pub(crate) http: u16,
    pub(crate) tls: u16,
    /// Port of the name server that it asks.
    pub(crate) dns: u16,
    /// Names it cannot resolve.
    pub(crate) unreachable: Vec<&'static str>,
    /// Connections so far.
    pub(crate) connections: usize,
    /// Those that are being answered, with what follows from them.
    pub(crate) open: usize,
    /// The one of them that ends before its handshake.
    pub(crate) broken_handshake: Option<usize>,
    /// Time between a request and its answer.
    pub(crate) slow: Duration,
    /// Requests that get no answer.
    pub(crate) silent: usize,
    /// How many clients at once look at an answer over HTTP, all of which must see the same.
    pub(crate) perspectives: usize,
    /// The most orders that were open at once.
    pub(crate) most_open: usize,
    certificates: HashMap<usize, (String, SystemTime, SystemTime)>,
    windows: HashMap<String, (SystemTime, SystemTime)>,
    base: String,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: String,
    nonce: u64,
}

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
    pub(super) kind: &'static str,
}

impl Reply {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string(), kind: "application/json" }
    }

    pub(super) fn problem(status: u16, kind: &str, detail: &str) -> Self {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let body = json!({"type": kind, "detail": detail, "status": status});
        Self { kind: "application/problem+json", ..Self::json(status, &body) }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What a validation is about.
pub(super) struct Validation {
    pub(super) order: usize,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) token: String,
    pub(super) thumbprint: String,
    pub(super) account: String,
    pub(super) wildcard: bool,
    pub(super) http: u16,
    pub(super) tls: u16,
    pub(super) dns: u16,
    pub(super) perspectives: usize,
}

/// How it is called in records that stand.
pub(crate) const ISSUER: &str = "stub-ca.example";

impl Books {
    pub(super) fn new(port: u16, http: u16, tls: u16) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "stub CA");
        let root = params.self_signed(&key).expect("signed").pem();
        Self {
            faults: HashMap::new(),
            asked: HashMap::new(),
            ahead: Duration::ZERO,
            orders: Vec::new(),
            accounts: Vec::new(),
            issued: 0,
            life: Duration::from_secs(90 * 86_400),
            ari: Ari::Off,
            profiles: Vec::new(),
            echoes: true,
            reuses: true,
            processing: 0,
            poll_after: "1",
            binding: None,
            tells_binding: true,
            offers: vec!["http-01", "tls-alpn-01", "dns-01", "dns-persist-01"],
            http,
            tls,
            dns: 0,
            unreachable: Vec::new(),
            connections: 0,
            open: 0,
            broken_handshake: None,
            slow: Duration::ZERO,
            silent: 0,
            perspectives: 6,
            most_open: 0,
            certificates: HashMap::new(),
            windows: HashMap::new(),
            base: format!("https://localhost:{port}"),
            issuer: Issuer::new(params, key),
            root,
            nonce: 0,
        }
    }

    #[allow(clippy::disallowed_methods, reason = "the CA has a clock of its own")]
    pub(crate) fn now(&self) -> SystemTime {
        SystemTime::now() + self.ahead
    }

    pub(super) fn nonce(&mut self) -> String {
        self.nonce += 1;
        format!("nonce-{}", self.nonce)
    }

    pub(super) fn fault(&mut self, step: Step) -> Option<Fault> {
        *self.asked.entry(step).or_default() += 1;
        self.faults.get_mut(&step).and_then(VecDeque::pop_front)
    }

    /// Answers one request, and says what is to be validated because of it.
    pub(super) fn answer(
        &mut self,
        step: Step,
        path: &str,
        protected: &Value,
        payload: &Value,
        spoil: Option<(&'static str, &'static str)>,
    ) -> (Reply, Option<Validation>) {
        let number = path.rsplit('/').find_map(|part| part.parse::<usize>().ok()).unwrap_or(usize::MAX);
        let known = |books: &Self| {
            let kid = protected["kid"].as_str().unwrap_or_default();
            (0..books.accounts.len()).any(|account| kid == format!("{}/account/{account}", books.base))
        };
        let needs_account =
            !matches!(step, Step::Directory | Step::Nonce | Step::NewAccount | Step::RenewalInfo);
        if needs_account && !known(self) {
            return (Reply::problem(400, "accountDoesNotExist", "never seen"), None);
        }
        let reply = match step {
            Step::Directory => Reply::json(200, &self.directory()),
            Step::Nonce => {
                Reply { status: 200, headers: Vec::new(), body: String::new(), kind: "text/plain" }
            }
            Step::NewAccount => self.new_account(protected, payload),
            Step::Account => Reply::json(200, &json!({"status": "valid"})),
            Step::NewOrder => self.new_order(protected, payload),
            Step::Order => self.order(number),
            Step::Authorization => self.authorization(number),
            Step::Challenge => return self.challenge(path, number),
            Step::Finalize => self.finalize(number, payload, spoil),
            Step::Certificate => match self.certificates.get(&number) {
                Some((pem, ..)) => Reply {
                    status: 200,
                    headers: Vec::new(),
                    body: pem.clone(),
                    kind: "application/pem-certificate-chain",
                },
                None => Reply::problem(404, "malformed", "no such certificate"),
            },
            Step::RenewalInfo => self.renewal_info(path),
        };
        (reply, None)
    }

    fn directory(&self) -> Value {
        let url = |path: &str| format!("{}/{path}", self.base);
        let profiles: HashMap<_, _> = self.profiles.iter().map(|name| (*name, "as named")).collect();
        let mut directory = json!({
            "newNonce": url("nonce"), "newAccount": url("new-account"), "newOrder": url("new-order"),
            "revokeCert": url("revoke"), "keyChange": url("key-change"),
            "meta": {"profiles": profiles, "externalAccountRequired": self.tells_binding && self.binding.is_some()},
        });
        if !matches!(self.ari, Ari::Off) {
            directory["renewalInfo"] = url("renewal-info").into();
        }
        directory
    }

    fn new_account(&mut self, protected: &Value, payload: &Value) -> Reply {
        let key = protected["jwk"].clone();
        let known = self.accounts.iter().position(|account| *account == key);
        if known.is_none()
            && let Some((kid, secret)) = &self.binding
        {
            let given = &payload["externalAccountBinding"];
            if given.is_null() {
                return Reply::problem(403, "externalAccountRequired", "bind it");
            }
            let part = |name: &str| given[name].as_str().unwrap_or_default();
            let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
            let header: Value = serde_json::from_slice(&decode(part("protected"))).unwrap_or_default();
            let bound: Value = serde_json::from_slice(&decode(part("payload"))).unwrap_or_default();
            let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
            let input = format!("{}.{}", part("protected"), part("payload"));
            let signed =
                aws_lc_rs::hmac::verify(&secret, input.as_bytes(), &decode(part("signature"))).is_ok();
            let url = format!("{}/new-account", self.base);
            if !signed || bound != key || header["kid"] != *kid || header["url"] != url {
                return Reply::problem(403, "unauthorized", "the binding is not right");
            }
        }
        let status = if known.is_some() { 200 } else { 201 };
        let account = known.unwrap_or_else(|| {
            self.accounts.push(key);
            self.accounts.len() - 1
        });
        Reply::json(status, &json!({"status": "valid"}))
            .with("location", format!("{}/account/{account}", self.base))
    }

    fn new_order(&mut self, protected: &Value, payload: &Value) -> Reply {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kid = protected["kid"].as_str().unwrap_or_default();
        let account = kid.rsplit('/').next().and_then(|last| last.parse::<usize>().ok()).unwrap_or_default();
        let profile = text(&payload["profile"]);
        if profile.as_deref().is_some_and(|wanted| !self.profiles.contains(&wanted)) {
            return Reply::problem(400, "invalidProfile", "no such profile");
        }
        let identifier = &payload["identifiers"][0];
        let name = text(&identifier["value"]).unwrap_or_default();
        let same = |order: &Order| {
            let open = matches!(order.status, "pending" | "ready");
            open && (order.name.as_str(), order.account.as_str(), &order.profile) == (&name, kid, &profile)
        };
        if let Some(number) = self.orders.iter().position(same).filter(|_| self.reuses) {
            return self.made(number);
        }
        self.orders.push(Order {
            name,
            ip: identifier["type"] == "ip",
            status: "pending",
            replaces: text(&payload["replaces"]),
            profile,
            at: self.now(),
            error: None,
            challenge_error: None,
            thumbprint: thumbprint(&self.accounts[account]),
            account: kid.to_owned(),
            told: String::new(),
            polls_left: self.processing,
        });
        let open = self.orders.iter().filter(|order| !matches!(order.status, "valid" | "invalid")).count();
        self.most_open = self.most_open.max(open);
        self.made(self.orders.len() - 1)
    }

    fn made(&self, number: usize) -> Reply {
        let location = format!("{}/order/{number}", self.base);
        Reply { status: 201, ..self.shown(number) }.with("location", location)
    }

    fn shown(&self, number: usize) -> Reply {
        let order = &self.orders[number];
        let mut body = json!({
            "status": order.status,
            "identifiers": [self.identifier(order)],
            "authorizations": [format!("{}/authz/{number}", self.base)],
            "finalize": format!("{}/finalize/{number}", self.base),
        });
        if let Some(error) = &order.error {
            body["error"] = error.clone();
        }
        if let Some(profile) = &order.profile {
            body["profile"] = profile.clone().into();
        }
        if let Some(replaces) = order.replaces.as_ref().filter(|_| self.echoes) {
            body["replaces"] = replaces.clone().into();
        }
        if order.status == "valid" {
            body["certificate"] = format!("{}/cert/{number}", self.base).into();
        }
        Reply::json(200, &body)
    }

    fn identifier(&self, order: &Order) -> Value {
        json!({"type": if order.ip { "ip" } else { "dns" }, "value": order.name})
    }

    fn order(&mut self, number: usize) -> Reply {
        let Some(order) = self.orders.get_mut(number) else {
            return Reply::problem(404, "malformed", "no such order");
        };
        if order.status == "processing" {
            order.polls_left = order.polls_left.saturating_sub(1);
            if order.polls_left == 0 {
                order.status = "valid";
            }
        }
        let reply = self.shown(number);
        if self.orders[number].status == "processing" {
            reply.with("retry-after", self.poll_after)
        } else {
            reply
        }
    }

    fn authorization(&self, number: usize) -> Reply {
        let Some(order) = self.orders.get(number) else {
            return Reply::problem(404, "malformed", "no such authorization");
        };
        let status = match order.status {
            "pending" => "pending",
            "invalid" => "invalid",
            _ => "valid",
        };
        let challenge = |kind: &&str| {
            let mut challenge = json!({
                "type": kind, "url": format!("{}/chall/{number}/{kind}", self.base), "status": status,
            });
            // The draft of that kind has no token.
            if *kind == "dns-persist-01" {
                challenge["issuer-domain-names"] = json!([ISSUER, "other.example"]);
            } else {
                challenge["token"] = token(number).into();
            }
            if let Some(error) = order.challenge_error.as_ref().filter(|_| *kind == order.told) {
                challenge["error"] = error.clone();
            }
            challenge
        };
        let challenges: Vec<Value> = self.offers.iter().map(challenge).collect();
        // A wildcard is authorized under the name without it (RFC 8555 §7.1.3).
        let bare = order.name.trim_start_matches("*.").to_owned();
        let identifier = json!({"type": if order.ip { "ip" } else { "dns" }, "value": bare});
        let mut body = json!({"identifier": identifier, "status": status, "challenges": challenges});
        if order.name.starts_with("*.") {
            body["wildcard"] = true.into();
        }
        Reply::json(200, &body)
    }

    fn challenge(&mut self, path: &str, _number: usize) -> (Reply, Option<Validation>) {
        let mut parts = path.rsplit('/');
        let kind = parts.next().unwrap_or_default().to_owned();
        let number = parts.next().and_then(|part| part.parse::<usize>().ok()).unwrap_or(usize::MAX);
        let Some(order) = self.orders.get_mut(number) else {
            return (Reply::problem(404, "malformed", "no such challenge"), None);
        };
        order.told.clone_from(&kind);
        let validation = Validation {
            order: number,
            kind: kind.clone(),
            name: order.name.trim_start_matches("*.").to_owned(),
            token: token(number),
            thumbprint: order.thumbprint.clone(),
            account: order.account.clone(),
            wildcard: order.name.starts_with("*."),
            http: self.http,
            tls: self.tls,
            dns: self.dns,
            perspectives: self.perspectives,
        };
        let body = json!({
            "type": kind, "url": format!("{}{path}", self.base), "status": "processing", "token": token(number),
        });
        (Reply::json(200, &body), Some(validation))
    }

    /// A validation has ended.
    pub(super) fn validated(&mut self, number: usize, outcome: Result<(), (&'static str, String)>) {
        let order = &mut self.orders[number];
        if order.status != "pending" {
            return;
        }
        match outcome {
            Ok(()) => order.status = "ready",
            Err((kind, detail)) => {
                order.status = "invalid";
                let kind = format!("urn:ietf:params:acme:error:{kind}");
                order.challenge_error = Some(json!({"type": kind, "detail": detail, "status": 403}));
            }
        }
    }

    fn finalize(
        &mut self,
        number: usize,
        payload: &Value,
        spoil: Option<(&'static str, &'static str)>,
    ) -> Reply {
        let Some(order) = self.orders.get(number) else {
            return Reply::problem(404, "malformed", "no such order");
        };
        if order.status != "ready" {
            return Reply::problem(403, "orderNotReady", "it is not ready");
        }
        if let Some((kind, detail)) = spoil {
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            self.orders[number].status = "processing";
            let shown = self.shown(number);
            self.orders[number].status = "invalid";
            self.orders[number].error = Some(json!({"type": kind, "detail": detail, "status": 403}));
            return shown;
        }
        let csr = BASE64_URL_SAFE_NO_PAD.decode(payload["csr"].as_str().unwrap_or_default());
        let Ok(mut request) = CertificateSigningRequestParams::from_der(&csr.unwrap_or_default().into())
        else {
            return Reply::problem(400, "badCSR", "unreadable");
        };
        let (now, life) = (self.now(), self.life);
        let (from, to) = (whole(now), whole(now) + life);
        self.issued += 1;
        request.params.not_before = from.into();
        request.params.not_after = to.into();
        request.params.use_authority_key_identifier_extension = true;
        request.params.serial_number = Some(SerialNumber::from(fastrand::u64(1..1 << 62)));
        let leaf = request.signed_by(&self.issuer).expect("signed");
        let id = identifier_of(leaf.der());
        self.windows.insert(id, (from, to));
        self.certificates.insert(number, (format!("{}{}", leaf.pem(), self.root), from, to));
        let order = &mut self.orders[number];
        order.status = if order.polls_left > 0 { "processing" } else { "valid" };
        self.shown(number)
    }

    fn renewal_info(&self, path: &str) -> Reply {
        let id = path.rsplit('/').next().unwrap_or_default();
        let Some((from, to)) = self.windows.get(id).copied() else {
            return Reply::problem(404, "malformed", "no such certificate");
        };
        let (start, end, again) = match self.ari {
            Ari::Off => return Reply::problem(404, "malformed", "not offered"),
            Ari::Window(start, end) => (start, end, Duration::from_secs(21_600)),
            Ari::Usual(again) => {
                let life = to.duration_since(from).expect("later");
                let share = if life < Duration::from_secs(10 * 86_400) { 0.5 } else { 2.0 / 3.0 };
                (from + life.mul_f64(share - 0.01), from + life.mul_f64(share + 0.01), again)
            }
        };
        let text = |at: SystemTime| OffsetDateTime::from(at).format(&Rfc3339).expect("a date");
        let body = json!({
            "suggestedWindow": {"start": text(start), "end": text(end)},
            "explanationURL": "https://ca.test/why",
        });
        Reply::json(200, &body).with("retry-after", again.as_secs().to_string())
    }
}

fn token(order: usize) -> String {
    format!("token_of-order-{order}-0123456789")
}

fn whole(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).expect("later");
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// RFC 7638.
fn thumbprint(jwk: &Value) -> String {
    let text = format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(digest)
}

/// How a certificate is named in questions about its renewal (RFC 9773 §4.1), read by hand.
fn identifier_of(der: &[u8]) -> String {
    use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};
    let (_, leaf) = X509Certificate::from_der(der).expect("readable");
    let issuer = leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => {
            found.key_identifier.as_ref().map(|id| id.0.to_vec())
        }
        _ => None,
    });
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}", part(&issuer.expect("has one")), part(leaf.tbs_certificate.raw_serial()))
}
