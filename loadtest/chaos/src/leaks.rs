//! What must not be left when all is over: processes, cgroups, messages, consumers, temporary files, descriptors.
