//! What EC2's error codes mean to the autoscaler.
//!
//! From <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>. What is not known there is judged by its
//! status: the client's fault is a setting's, everything else passes.

use flux_provider::ProviderError;

/// EC2 refused something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) status: u16,
}

const QUOTA: &[&str] = &[
    "InstanceLimitExceeded",
    "VcpuLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "VolumeLimitExceeded",
    "AddressLimitExceeded",
    "NetworkInterfaceLimitExceeded",
    "ResourceLimitExceeded",
];
const CAPACITY: &[&str] = &[
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "InsufficientReservedInstanceCapacity",
    "InsufficientFreeAddressesInSubnet",
    "InsufficientAddressCapacity",
    "InsufficientVolumeCapacity",
    "SpotMaxPriceTooLow",
    // The type is not offered in the zone.
    "Unsupported",
];
const CREDENTIALS: &[&str] = &[
    "AuthFailure",
    "UnauthorizedOperation",
    "AccessDenied",
    "AccessDeniedException",
    "Blocked",
    "OptInRequired",
    "PendingVerification",
    "AccountDisabled",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "RequestExpired",
    "ExpiredToken",
    "ExpiredTokenException",
    "MissingAuthenticationToken",
    "UnrecognizedClientException",
];
const THROTTLED: &[&str] = &[
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "EC2ThrottledException",
    "TooManyRequestsException",
    "SlowDown",
    "BandwidthLimitExceeded",
];
/// The request is under way, or its trace is not everywhere yet.
const PASSES: &[&str] =
    &["IdempotentParameterMismatch", "IncorrectInstanceState", "IncorrectState", "ConcurrentTagAccess"];
/// How codes begin, or what messages name, and the setting that is meant.
const FIELDS: &[(&str, &str)] = &[
    ("InvalidAMIID", "ami"),
    ("InvalidSubnet", "subnets"),
    ("InvalidGroup", "security_groups"),
    ("InvalidSecurityGroup", "security_groups"),
    ("InvalidKeyPair", "key_pair"),
    ("InvalidInstanceType", "node_types"),
    ("InvalidIamInstanceProfile", "instance_profile"),
    ("InvalidUserData", "user_data"),
    ("InvalidTagKey", "tags"),
    ("TagLimitExceeded", "tags"),
    ("InvalidZone", "subnets"),
];
const NAMED: &[(&str, &str)] = &[
    ("iaminstanceprofile", "instance_profile"),
    ("instance type", "node_types"),
    ("instancetype", "node_types"),
    ("security group", "security_groups"),
    ("key pair", "key_pair"),
    ("subnet", "subnets"),
    ("user data", "user_data"),
    ("image", "ami"),
    ("ami", "ami"),
    ("tag", "tags"),
];

impl Refusal {
    pub(crate) fn into_error(self, attempted: &str) -> ProviderError {
        let code = self.code.as_str();
        let source = format!("{code}: {}", self.message);
        if QUOTA.contains(&code) {
            ProviderError::quota(attempted, source)
        } else if CAPACITY.contains(&code) {
            ProviderError::capacity(attempted, source)
        } else if CREDENTIALS.contains(&code) {
            ProviderError::credentials(attempted, source)
        } else if THROTTLED.contains(&code) || self.status == 429 {
            ProviderError::throttled(attempted, source)
        } else if PASSES.contains(&code) || !(400..500).contains(&self.status) {
            ProviderError::unavailable(attempted, source)
        } else {
            ProviderError::invalid(self.field(), attempted, source)
        }
    }

    /// The setting that EC2 complains of.
    fn field(&self) -> &'static str {
        let message = self.message.to_ascii_lowercase();
        let by_code = FIELDS.iter().find(|(begin, _)| self.code.starts_with(begin));
        let by_name = || NAMED.iter().find(|(name, _)| message.contains(name));
        by_code.or_else(by_name).map_or("aws", |(_, field)| field)
    }
}

#[cfg(test)]
mod tests {
    use flux_provider::ErrorKind;

    use super::*;

    fn error(code: &str, message: &str, status: u16) -> ProviderError {
        Refusal { code: code.to_owned(), message: message.to_owned(), status }.into_error("launch a node")
    }

    #[test]
    fn codes_are_told_apart_by_what_helps() {
        for (code, status, kind) in [
            ("VcpuLimitExceeded", 400, ErrorKind::Quota),
            ("InsufficientInstanceCapacity", 500, ErrorKind::Capacity),
            ("Unsupported", 400, ErrorKind::Capacity),
            ("UnauthorizedOperation", 403, ErrorKind::Credentials),
            ("RequestLimitExceeded", 503, ErrorKind::Throttled),
            ("IdempotentParameterMismatch", 400, ErrorKind::Unavailable),
            ("InternalError", 500, ErrorKind::Unavailable),
            ("SomethingNew", 503, ErrorKind::Unavailable),
            ("SomethingNew", 400, ErrorKind::Invalid),
        ] {
            assert_eq!(error(code, "", status).kind(), kind, "{code} {status}");
        }
    }

    #[test]
    fn an_invalid_request_names_the_setting() {
        for (code, message, expected) in [
            ("InvalidAMIID.NotFound", "The image id '[ami-1]' does not exist", "ami"),
            ("InvalidSubnetID.NotFound", "", "subnets"),
            ("InvalidGroup.NotFound", "", "security_groups"),
            ("InvalidKeyPair.NotFound", "", "key_pair"),
            ("InvalidParameterValue", "Value (x) for parameter iamInstanceProfile.name is invalid", "instance_profile"),
            ("InvalidParameterValue", "Invalid value 'x' for InstanceType.", "node_types"),
            ("MissingParameter", "something", "aws"),
        ] {
            let ProviderError::Invalid { field, .. } = error(code, message, 400) else { panic!("{code}") };
            assert_eq!(field, expected, "{code}: {message}");
        }
    }
}
