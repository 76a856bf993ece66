//! The seam's methods, by EC2's.

use std::{error::Error as _, net::IpAddr, time::Duration};

use async_trait::async_trait;
use aws_sdk_ec2::{
    Client,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig, timeout::TimeoutConfig},
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    types::{
        Filter, HttpTokensState, IamInstanceProfileSpecification, Instance, InstanceInterruptionBehavior,
        InstanceMarketOptionsRequest, InstanceMetadataOptionsRequest, InstanceStateName, InstanceType, MarketType,
        ResourceType, ShutdownBehavior, SpotInstanceType, SpotMarketOptions, Tag, TagSpecification,
    },
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flux_protocol::{PoolName, Timestamp};
use flux_provider::{
    Capabilities, ClientToken, ClusterName, ConsoleOutput, InvalidId, LaunchRequest, Node, NodeId, NodeState, NodeType,
    Provider, ProviderError, TypeDetails, Zone,
    asking::{Launches, within},
    tag,
};

use crate::{AwsSettings, meaning::Refusal};

/// One request.
const REQUEST: Duration = Duration::from_secs(20);
/// Values of one filter, and rows of a page that names types.
const TYPES: usize = 100;

pub struct AwsProvider {
    client: Client,
    settings: AwsSettings,
    cluster: ClusterName,
    zones: Vec<Zone>,
    launching: Launches,
}

impl std::fmt::Debug for AwsProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsProvider")
            .field("settings", &self.settings)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl AwsProvider {
    /// Asks AWS nothing yet; with the standard chain, credentials are looked for when they are first needed.
    ///
    /// # Errors
    /// A subnet, or the region, is no name.
    pub async fn connect(settings: AwsSettings, cluster: ClusterName) -> Result<Self, InvalidId> {
        let zones = settings.zones()?;
        let region = Region::new(settings.region.clone());
        let mut config = match &settings.keys {
            Some(keys) => {
                let (id, secret) = (keys.access_key_id.clone(), keys.secret_access_key.clone());
                let credentials = Credentials::new(id, secret, keys.session_token.clone(), None, "flux-autoscaler");
                aws_sdk_ec2::Config::builder().credentials_provider(credentials)
            }
            None => (&aws_config::defaults(BehaviorVersion::latest()).region(region.clone()).load().await).into(),
        };
        config = config
            .behavior_version(BehaviorVersion::latest())
            .region(region)
            // The caller repeats, with its own pauses and to the next type or zone.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(REQUEST).connect_timeout(REQUEST / 4).build());
        if let Some(url) = &settings.endpoint_url {
            config = config.endpoint_url(url);
        }
        Ok(Self { client: Client::from_conf(config.build()), settings, cluster, zones, launching: Launches::default() })
    }

    fn ours(&self) -> Filter {
        filter(&format!("tag:{}", tag::CLUSTER), [self.cluster.as_str()])
    }

    async fn describe(&self, filters: Vec<Filter>, attempted: &str) -> Result<Vec<Node>, ProviderError> {
        let mut pages = self.client.describe_instances().set_filters(Some(filters)).into_paginator().send();
        let mut nodes = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| meant(&error, attempted))?;
            let instances = page.reservations().iter().flat_map(|reservation| reservation.instances());
            nodes.extend(instances.filter_map(|instance| self.node(instance)));
        }
        Ok(nodes)
    }

    async fn find(&self, id: &NodeId, attempted: &str) -> Result<Option<Node>, ProviderError> {
        Ok(self.describe(vec![self.ours(), filter("instance-id", [id.as_str()])], attempted).await?.pop())
    }

    async fn find_launched(&self, token: &ClientToken, attempted: &str) -> Result<Option<Node>, ProviderError> {
        let by_token = filter(&format!("tag:{}", tag::CLIENT_TOKEN), [token.as_str()]);
        let alive = filter("instance-state-name", ["pending", "running"]);
        Ok(self.describe(vec![self.ours(), by_token, alive], attempted).await?.pop())
    }

    /// `None` for an instance without an id, which there is not.
    fn node(&self, instance: &Instance) -> Option<Node> {
        let text = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
        let tags: std::collections::BTreeMap<_, _> = instance.tags().iter().filter_map(text).collect();
        let tagged = |name: &str| tags.get(name).map(String::as_str);
        let zone =
            instance.subnet_id().and_then(|subnet| Zone::parse(subnet).ok()).filter(|zone| self.zones.contains(zone));
        let address = |text: Option<&str>| text.and_then(|text| text.parse::<IpAddr>().ok());
        Some(Node {
            id: NodeId::parse(instance.instance_id()?).ok()?,
            client_token: tagged(tag::CLIENT_TOKEN).and_then(|token| ClientToken::parse(token).ok()),
            state: state(instance.state().and_then(|state| state.name())),
            node_type: NodeType::parse(instance.instance_type()?.as_str()).ok()?,
            zone: zone.or_else(|| self.zones.first().cloned())?,
            pool: tagged(tag::POOL).and_then(|pool| PoolName::parse(pool).ok()),
            spot: instance.instance_lifecycle().is_some_and(|lifecycle| lifecycle.as_str() == "spot"),
            public_address: address(instance.public_ip_address()),
            private_address: address(instance.private_ip_address()),
            launched_at: instance.launch_time().and_then(|at| at.to_millis().ok()).map(Timestamp::from_millis),
            price_per_hour: None,
            tags,
        })
    }

    fn tags(&self, request: &LaunchRequest, of: ResourceType) -> TagSpecification {
        let mut tags = self.settings.tags.clone();
        tags.extend(request.tags.clone());
        tags.insert(tag::CLUSTER.to_owned(), self.cluster.to_string());
        tags.insert(tag::CLIENT_TOKEN.to_owned(), request.client_token.to_string());
        tags.insert(tag::POOL.to_owned(), request.pool.to_string());
        tags.entry("Name".to_owned()).or_insert_with(|| request.client_token.to_string());
        let tags = tags.into_iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
        TagSpecification::builder().resource_type(of).set_tags(Some(tags.collect())).build()
    }

    async fn run(&self, request: &LaunchRequest, zone: &Zone, attempted: &str) -> Result<Node, ProviderError> {
        let metadata = InstanceMetadataOptionsRequest::builder().http_tokens(HttpTokensState::Required).build();
        let mut run = self
            .client
            .run_instances()
            .client_token(request.client_token.as_str())
            .image_id(&self.settings.ami)
            .instance_type(InstanceType::from(request.node_type.as_str()))
            .min_count(1)
            .max_count(1)
            .set_key_name(self.settings.key_pair.clone())
            .set_security_group_ids(Some(self.settings.security_groups.clone()).filter(|groups| !groups.is_empty()))
            .set_user_data(request.user_data.as_ref().map(|text| BASE64_STANDARD.encode(text)))
            .metadata_options(metadata)
            // A machine that shuts itself down is not paid for any more.
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .tag_specifications(self.tags(request, ResourceType::Instance))
            .tag_specifications(self.tags(request, ResourceType::Volume));
        if !self.settings.subnets.is_empty() {
            run = run.subnet_id(zone.as_str());
        }
        if let Some(profile) = &self.settings.instance_profile {
            run = run.iam_instance_profile(IamInstanceProfileSpecification::builder().name(profile).build());
        }
        if request.spot || self.settings.spot {
            let spot = SpotMarketOptions::builder()
                .spot_instance_type(SpotInstanceType::OneTime)
                .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate)
                .build();
            let market =
                InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot).spot_options(spot).build();
            run = run.instance_market_options(market);
        }
        let launched = run.send().await.map_err(|error| meant(&error, attempted))?;
        let node = launched.instances().first().and_then(|instance| self.node(instance));
        node.ok_or_else(|| ProviderError::unavailable(attempted, "EC2 answered without an instance"))
    }
}

fn filter<'a>(name: &str, values: impl IntoIterator<Item = &'a str>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().map(str::to_owned).collect())).build()
}

fn state(name: Option<&InstanceStateName>) -> NodeState {
    match name {
        Some(InstanceStateName::Pending) | None => NodeState::Pending,
        Some(InstanceStateName::Running) => NodeState::Running,
        Some(InstanceStateName::Terminated) => NodeState::Gone,
        // Nobody starts a stopped one again, and its disk is paid for.
        Some(_) => NodeState::Stopping,
    }
}

/// An error of the SDK, as the seam has it.
fn meant<E>(error: &SdkError<E>, attempted: &str) -> ProviderError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let Some(service) = error.as_service_error() else {
        let text = DisplayErrorContext(error).to_string();
        // The chain found none, or what it found could not be used.
        let mut below: Option<&(dyn std::error::Error + 'static)> = error.source();
        while let Some(source) = below {
            if source.is::<aws_credential_types::provider::error::CredentialsError>() {
                return ProviderError::credentials(attempted, text);
            }
            below = source.source();
        }
        return ProviderError::unavailable(attempted, text);
    };
    Refusal {
        code: service.code().unwrap_or_default().to_owned(),
        message: service.message().unwrap_or_default().to_owned(),
        status: error.raw_response().map_or(0, |response| response.status().as_u16()),
    }
    .into_error(attempted)
}

#[async_trait]
impl Provider for AwsProvider {
    fn name(&self) -> &'static str {
        "aws"
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
            return Err(ProviderError::invalid("zones", attempted, "it is none of the configured subnets"));
        };
        let _launching = self.launching.begin(&request.client_token, &attempted)?;
        within(
            &attempted,
            Box::pin(async {
                match self.find_launched(&request.client_token, &attempted).await? {
                    Some(node) => Ok(node),
                    None => self.run(request, zone, &attempted).await,
                }
            }),
        )
        .await
    }

    async fn list(&self) -> Result<Vec<Node>, ProviderError> {
        let attempted = "list the nodes";
        within(attempted, Box::pin(self.describe(vec![self.ours()], attempted))).await
    }

    async fn terminate(&self, id: &NodeId) -> Result<(), ProviderError> {
        let attempted = format!("terminate {id}");
        within(
            &attempted,
            Box::pin(async {
                let Some(node) = self.find(id, &attempted).await? else { return Ok(()) };
                if node.state == NodeState::Gone {
                    return Ok(());
                }
                match self.client.terminate_instances().instance_ids(id.as_str()).send().await {
                    Err(error) if gone(&error) => Ok(()),
                    other => other.map(|_| ()).map_err(|error| meant(&error, &attempted)),
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
                self.find(id, &attempted).await?.ok_or_else(missing)?;
                let ask =
                    |latest: bool| self.client.get_console_output().instance_id(id.as_str()).latest(latest).send();
                // Older types keep only what they wrote when they booted.
                let answered = match ask(true).await {
                    Err(error)
                        if error.as_service_error().and_then(|error| error.code()) == Some("UnsupportedOperation") =>
                    {
                        ask(false).await
                    }
                    other => other,
                };
                let answered = match answered {
                    Err(error) if gone(&error) => return Err(missing()),
                    other => other.map_err(|error| meant(&error, &attempted))?,
                };
                let text = answered.output().and_then(|output| BASE64_STANDARD.decode(output).ok()).unwrap_or_default();
                Ok(ConsoleOutput::parse(String::from_utf8_lossy(&text).into_owned()))
            }),
        )
        .await
    }

    async fn describe_types(&self, types: &[NodeType]) -> Result<Vec<TypeDetails>, ProviderError> {
        let attempted = "describe the node types";
        within(
            attempted,
            Box::pin(async {
                let mut known = Vec::new();
                for some in types.chunks(TYPES) {
                    // A filter leaves out what does not exist; naming the types would be an error.
                    let named = filter("instance-type", some.iter().map(NodeType::as_str));
                    let mut pages = self.client.describe_instance_types().filters(named).into_paginator().send();
                    while let Some(page) = pages.next().await {
                        let page = page.map_err(|error| meant(&error, attempted))?;
                        known.extend(page.instance_types().iter().filter_map(|info| {
                            Some(TypeDetails {
                                node_type: NodeType::parse(info.instance_type()?.as_str()).ok()?,
                                cpu_millicores: u32::try_from(info.v_cpu_info()?.default_v_cpus()?).ok()? * 1_000,
                                memory_mb: u32::try_from(info.memory_info()?.size_in_mib()?).ok()?,
                                price_per_hour: None,
                            })
                        }));
                    }
                }
                let of =
                    |name: &NodeType| known.iter().find(|details: &&TypeDetails| details.node_type == *name).cloned();
                Ok(types.iter().filter_map(of).collect())
            }),
        )
        .await
    }
}

/// EC2 does not know the instance (any more).
fn gone<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let code = error.as_service_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("InvalidInstanceID"))
}
