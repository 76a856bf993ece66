//! The seam's methods, by Compute Engine's.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use flux_provider::{
    Capabilities, ClientToken, ClusterName, ConsoleOutput, LaunchRequest, Node, NodeId, NodeState, NodeType, Provider,
    ProviderError, TypeDetails, Zone,
    asking::{Launches, within},
    tag,
};
use futures::future::{join_all, try_join_all};
use google_cloud_compute_v1::{
    client::{Instances, MachineTypes},
    model::{Instance, instances_scoped_list::warning::Code},
};
use google_cloud_gax::paginator::Paginator as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::{
    GcpSettings,
    answer::{failure, meant, refusal, settled},
    client,
    node::{Place, is_of, node},
    request,
};

/// How long an insert's operation is waited for; a machine whose operation takes longer is returned as it is.
const SETTLES: Duration = Duration::from_secs(25);
/// Tokens whose failures are remembered.
const FAILED_AT_MOST: usize = 1024;
/// Where Linux machines write what they say while they boot.
const CONSOLE_PORT: i32 = 1;

pub struct GcpProvider {
    instances: Instances,
    machine_types: MachineTypes,
    settings: GcpSettings,
    cluster: ClusterName,
    zones: Vec<Zone>,
    launching: Launches,
    /// How often a token's operation came to nothing, or what it made went. Google answers a `requestId` that it knows with the operation that it was
    /// of, failed or not: asking again takes another.
    failed: Mutex<HashMap<ClientToken, u32>>,
}

impl std::fmt::Debug for GcpProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GcpProvider")
            .field("settings", &self.settings)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl GcpProvider {
    /// Asks Google nothing yet; application default credentials of a machine at Google are looked for when they are first needed.
    ///
    /// # Errors
    /// A setting cannot be, or there are no credentials where the settings say.
    pub async fn connect(settings: GcpSettings, cluster: ClusterName) -> Result<Self, ProviderError> {
        settings.validate()?;
        let zones = settings.zones()?;
        let credentials = client::credentials(&settings).await?;
        let unusable = |error| client::unusable(&settings, error);
        let instances =
            client::configured(Instances::builder(), &settings, &credentials).build().await.map_err(unusable)?;
        let machine_types =
            client::configured(MachineTypes::builder(), &settings, &credentials).build().await.map_err(unusable)?;
        let (launching, failed) = (Launches::default(), Mutex::default());
        Ok(Self { instances, machine_types, settings, cluster, zones, launching, failed })
    }

    async fn get(&self, zone: &str, name: &str, attempted: &str) -> Result<Option<Instance>, ProviderError> {
        let got =
            self.instances.get().set_project(&self.settings.project).set_zone(zone).set_instance(name).send().await;
        match got {
            Err(error) if error.http_status_code() == Some(404) => Ok(None),
            other => other.map(Some).map_err(|error| meant(&error, attempted)),
        }
    }

    /// The instance that a node's id names, if it is this cluster's.
    async fn find(&self, id: &NodeId, attempted: &str) -> Result<Option<(Place, Instance)>, ProviderError> {
        let Some(place) = Place::of(id) else { return Ok(None) };
        let found = self.get(&place.zone, &place.name, attempted).await?;
        Ok(found.filter(|instance| is_of(instance, &self.cluster)).map(|instance| (place, instance)))
    }

    /// In all zones: by list it would be one request, but lists are late.
    async fn find_launched(&self, token: &ClientToken, attempted: &str) -> Result<Option<Node>, ProviderError> {
        let found =
            try_join_all(self.zones.iter().map(|zone| self.get(zone.as_str(), token.as_str(), attempted))).await?;
        let Some(instance) = found.into_iter().flatten().next() else { return Ok(None) };
        if !is_of(&instance, &self.cluster) {
            return Err(ProviderError::invalid(
                "client_token",
                attempted,
                "an instance of this name is not this cluster's",
            ));
        }
        Ok(node(&instance))
    }

    async fn insert(
        &self,
        body: Instance,
        request: &LaunchRequest,
        zone: &Zone,
        attempted: &str,
    ) -> Result<Node, ProviderError> {
        let token = &request.client_token;
        let insert = self
            .instances
            .insert()
            .set_project(&self.settings.project)
            .set_zone(zone.as_str())
            .set_request_id(self.request_id(request, zone))
            .set_body(body);
        let unsure = match tokio::time::timeout(SETTLES, settled(insert.poller(), attempted)).await {
            Ok(Ok(operation)) => match failure(&operation) {
                None => None,
                Some(refusal) if refusal.is_conflict() => Some(refusal.into_error(attempted)),
                Some(refusal) => {
                    let error = refusal.into_error(attempted);
                    if error.is_retryable() {
                        self.note_failure(token);
                    }
                    return Err(self.unless_offered_elsewhere(error, request, zone, attempted).await);
                }
            },
            Ok(Err(error)) if error.kind().bought_nothing() => {
                return Err(self.unless_offered_elsewhere(error, request, zone, attempted).await);
            }
            Ok(Err(error)) => Some(error),
            Err(late) => Some(ProviderError::unavailable(attempted, late)),
        };
        // What is there, counts. That it cannot be looked at says nothing about whether it is.
        let found = match self.get(zone.as_str(), token.as_str(), attempted).await {
            Ok(found) => found.filter(|instance| is_of(instance, &self.cluster)),
            Err(error) => return Err(unsure.unwrap_or_else(|| ProviderError::unavailable(attempted, error))),
        };
        let Some(node) = found.as_ref().and_then(node) else {
            return Err(unsure.unwrap_or_else(|| {
                // It was made and went since, lately or when this request was made for the first time.
                self.note_failure(token);
                ProviderError::unavailable(attempted, "it went again")
            }));
        };
        self.failed.lock().remove(token);
        Ok(node)
    }

    /// A type that a zone does not have is no wrong setting where another of the zones has it.
    async fn unless_offered_elsewhere(
        &self,
        error: ProviderError,
        request: &LaunchRequest,
        zone: &Zone,
        attempted: &str,
    ) -> ProviderError {
        let is_type = matches!(error, ProviderError::Invalid { field: "node_types", .. });
        if is_type
            && matches!(self.offered(zone, &request.node_type, attempted).await, Ok(None))
            && matches!(self.describe(&request.node_type, attempted).await, Ok(Some(_)))
        {
            return ProviderError::capacity(attempted, error);
        }
        error
    }

    fn note_failure(&self, token: &ClientToken) {
        let mut failed = self.failed.lock();
        // Who is forgotten is answered with the old failure once more.
        if failed.len() >= FAILED_AT_MOST {
            failed.clear();
        }
        *failed.entry(token.clone()).or_default() += 1;
    }

    /// Of one try: the same for the same request as long as it is not known to have failed.
    fn request_id(&self, request: &LaunchRequest, zone: &Zone) -> String {
        let failed = self.failed.lock().get(&request.client_token).copied().unwrap_or_default();
        let of = format!("{}/{zone}/{}/{failed}", request.client_token, request.node_type);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Sha256::digest(of)[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// By the first of the zones that has it.
    async fn describe(&self, wanted: &NodeType, attempted: &str) -> Result<Option<TypeDetails>, ProviderError> {
        for zone in &self.zones {
            if let Some(details) = self.offered(zone, wanted, attempted).await? {
                return Ok(Some(details));
            }
        }
        Ok(None)
    }

    async fn offered(
        &self,
        zone: &Zone,
        wanted: &NodeType,
        attempted: &str,
    ) -> Result<Option<TypeDetails>, ProviderError> {
        let get = self.machine_types.get().set_project(&self.settings.project).set_zone(zone.as_str());
        let offered = match get.set_machine_type(wanted.as_str()).send().await {
            Ok(offered) => offered,
            // 400: it is not even a name.
            Err(error) if matches!(error.http_status_code(), Some(400 | 404)) => return Ok(None),
            Err(error) => return Err(meant(&error, attempted)),
        };
        let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok());
        Ok(number(offered.guest_cpus).zip(number(offered.memory_mb)).map(|(cpus, memory_mb)| TypeDetails {
            node_type: wanted.clone(),
            cpu_millicores: cpus.saturating_mul(1_000),
            memory_mb,
            price_per_hour: None,
        }))
    }

    /// Host keys, where Google's agent wrote them; as a block of a console, that they are read by the same rules.
    async fn guest_attributes(&self, place: &Place) -> String {
        let attributes = self
            .instances
            .get_guest_attributes()
            .set_project(&self.settings.project)
            .set_zone(&place.zone)
            .set_instance(&place.name)
            .set_query_path("hostkeys/");
        let value = match attributes.send().await {
            Ok(attributes) => attributes.query_value.unwrap_or_default(),
            // None of them was written yet.
            Err(error) if error.http_status_code() == Some(404) => return String::new(),
            // An image may do without: it is said, and no error.
            Err(error) => {
                return format!("\nflux: the guest attributes cannot be read: {}\n", meant(&error, "read them"));
            }
        };
        let host_keys = value.items.iter().filter(|item| item.namespace.as_deref() == Some("hostkeys"));
        let lines: String =
            host_keys.filter_map(|item| Some(format!("{} {}\n", item.key.as_ref()?, item.value.as_ref()?))).collect();
        format!("\n-----BEGIN SSH HOST KEY KEYS-----\n{lines}-----END SSH HOST KEY KEYS-----\n")
    }
}

#[async_trait]
impl Provider for GcpProvider {
    fn name(&self) -> &'static str {
        "gcp"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { needs_bootstrap: true, console: true, user_data: true, spot: true }
    }

    fn zones(&self) -> &[Zone] {
        &self.zones
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Node, ProviderError> {
        let attempted = format!("launch a node of type {}", request.node_type);
        let zone = request.zone.as_ref().or_else(|| self.zones.first());
        let Some(zone) = zone.filter(|zone| self.zones.contains(zone)) else {
            return Err(ProviderError::invalid("zones", attempted, "it is none of the configured zones"));
        };
        let body = request::instance(&self.settings, &self.cluster, request, zone, &attempted)?;
        // Two of one token at once may be of two zones.
        let _launching = self.launching.begin(&request.client_token, &attempted)?;
        within(
            &attempted,
            Box::pin(async {
                match self.find_launched(&request.client_token, &attempted).await? {
                    Some(node) => Ok(node),
                    None => self.insert(body, request, zone, &attempted).await,
                }
            }),
        )
        .await
    }

    async fn list(&self) -> Result<Vec<Node>, ProviderError> {
        let attempted = "list the nodes";
        within(
            attempted,
            Box::pin(async {
                let mut pages = self
                    .instances
                    .aggregated_list()
                    .set_project(&self.settings.project)
                    .set_filter(format!("labels.{} = \"{}\"", tag::CLUSTER, self.cluster))
                    .by_page();
                let mut nodes = Vec::new();
                while let Some(page) = pages.next().await {
                    let page = page.map_err(|error| meant(&error, attempted))?;
                    let mut missing = page.unreachables.clone();
                    for (zone, scope) in &page.items {
                        let warning = scope.warning.as_ref().and_then(|warning| warning.code.as_ref());
                        missing.extend((warning == Some(&Code::Unreachable)).then(|| zone.clone()));
                        let ours = scope.instances.iter().filter(|instance| is_of(instance, &self.cluster));
                        nodes.extend(ours.filter_map(node));
                    }
                    if !missing.is_empty() {
                        return Err(ProviderError::unavailable(
                            attempted,
                            format!("out of reach: {}", missing.join(", ")),
                        ));
                    }
                }
                Ok(nodes)
            }),
        )
        .await
    }

    async fn terminate(&self, id: &NodeId) -> Result<(), ProviderError> {
        let attempted = format!("terminate {id}");
        within(
            &attempted,
            Box::pin(async {
                let Some((place, instance)) = self.find(id, &attempted).await? else { return Ok(()) };
                let delete = self.instances.delete().set_project(&self.settings.project).set_zone(&place.zone);
                let Err(error) = delete.set_instance(&place.name).send().await else { return Ok(()) };
                let is_going = node(&instance).is_some_and(|node| node.state == NodeState::Stopping);
                match refusal(&error) {
                    Some(refusal) if refusal.status == 404 || (is_going && refusal.is_busy()) => Ok(()),
                    _ => Err(meant(&error, &attempted)),
                }
            }),
        )
        .await
    }

    async fn console_output(&self, id: &NodeId) -> Result<ConsoleOutput, ProviderError> {
        let attempted = format!("read the console of {id}");
        let missing = || ProviderError::NotFound { what: format!("node {id}") };
        within(
            &attempted,
            Box::pin(async {
                let (place, _) = self.find(id, &attempted).await?.ok_or_else(missing)?;
                let console = self.instances.get_serial_port_output().set_project(&self.settings.project);
                let console = console.set_zone(&place.zone).set_instance(&place.name).set_port(CONSOLE_PORT);
                let text = match console.send().await {
                    Ok(console) => console.contents.unwrap_or_default(),
                    Err(error) if error.http_status_code() == Some(404) => return Err(missing()),
                    Err(error) => return Err(meant(&error, &attempted)),
                };
                let console = ConsoleOutput::parse(text);
                if !console.host_keys.is_empty() {
                    return Ok(console);
                }
                Ok(ConsoleOutput::parse(console.text + &self.guest_attributes(&place).await))
            }),
        )
        .await
    }

    async fn describe_types(&self, types: &[NodeType]) -> Result<Vec<TypeDetails>, ProviderError> {
        let attempted = "describe types";
        within(
            attempted,
            Box::pin(async {
                let described = join_all(types.iter().map(|wanted| self.describe(wanted, attempted))).await;
                described.into_iter().filter_map(Result::transpose).collect()
            }),
        )
        .await
    }
}
