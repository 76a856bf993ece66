//! What is not whole is refused, and says what is wrong with it.

use flux_backup::{BackupError, FORM, Header, Writer};
use flux_protocol::Digest;

use crate::made::{header, read_back, small, written};

#[test]
fn wherever_it_is_cut_it_is_refused() {
    let bytes = written(&small());
    // Behind its last entry there are only zeros, which nobody needs.
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("something") + 1;
    for length in 0..end {
        let refused = read_back(&bytes[..length]).expect_err("it is cut off");
        match refused {
            BackupError::NotABackup { .. } => assert!(length < 1024, "{length}: {refused}"),
            BackupError::CutOff => assert!(length >= 512, "{length}: {refused}"),
            other => panic!("{length}: {other}"),
        }
    }
}

/// Each byte, in three ways: refused, or it makes no difference (what fills a block up is nobody's).
#[test]
fn whatever_is_changed_is_refused_or_makes_no_difference() {
    let content = small();
    let bytes = written(&content);
    let mut refused = 0;
    for at in 0..bytes.len() {
        for change in [1, 0x20, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            match read_back(&changed) {
                Ok((found, _)) => assert_eq!(found, content, "byte {at} ^ {change:#x}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 3000, "{refused}");
}

/// Entries that are whole, and not those that were written.
#[test]
fn what_is_left_out_put_twice_or_in_another_order_is_refused() {
    let bytes = written(&small());
    let blocks = entries(&bytes);
    assert_eq!(blocks.len(), 5);
    let refused = |order: &[usize]| {
        let mut changed: Vec<u8> = order.iter().flat_map(|n| bytes[blocks[*n].clone()].to_vec()).collect();
        changed.extend([0; 1024]);
        read_back(&changed).expect_err("it is not what was written").to_string()
    };
    for order in [&[0, 1, 3, 4][..], &[0, 2, 1, 3, 4], &[0, 1, 1, 2, 3, 4], &[0, 0, 1, 2, 3, 4], &[0, 1, 2, 3, 4, 1]] {
        assert!(refused(order).contains("damaged"), "{order:?}");
    }
    assert!(refused(&[0, 1, 2, 3]).contains("cut off"));
    assert!(refused(&[1, 2, 3, 4]).contains("no backup"));
}

#[test]
fn what_is_none_is_said_to_be_none() {
    for bytes in [&b""[..], b"# a text\n", &[0; 4096], b"PK\x03\x04", &[7; 4096]] {
        assert!(matches!(read_back(bytes), Err(BackupError::NotABackup { .. })));
    }
    let mut other = tar::Builder::new(Vec::new());
    let mut head = tar::Header::new_ustar();
    head.set_size(3);
    other.append_data(&mut head, "holiday.jpg", &b"jpg"[..]).expect("written");
    let refused = read_back(&other.into_inner().expect("whole")).expect_err("another tar");
    assert!(matches!(refused, BackupError::NotABackup { .. }), "{refused}");
}

#[test]
fn a_newer_one_is_refused_by_name() {
    let newer = Header { flux_backup: FORM + 1, made_by: "9.1.0".to_owned(), ..header() };
    let (_, bytes) = Writer::begin(Vec::new(), &newer).expect("begun").end(Vec::new()).expect("written");
    let refused = read_back(&bytes).expect_err("it is newer");
    assert!(matches!(&refused, BackupError::Newer { by, .. } if by == "9.1.0"), "{refused}");
    assert!(refused.to_string().contains("newer release of Flux (9.1.0, form 2)"), "{refused}");
}

/// Nothing of another kind leads a reader elsewhere.
#[test]
fn links_and_long_names_are_nothing_that_a_backup_has() {
    let first = &written(&small())[entries(&written(&small()))[0].clone()].to_vec();
    for kind in
        [tar::EntryType::Symlink, tar::EntryType::GNULongName, tar::EntryType::XHeader, tar::EntryType::Directory]
    {
        let mut more = tar::Builder::new(Vec::new());
        let mut head = tar::Header::new_ustar();
        head.set_entry_type(kind);
        head.set_size(3);
        more.append_data(&mut head, format!("code/{}", Digest::of(b"abc").hex()), &b"abc"[..]).expect("written");
        let bytes = [&first[..], &more.into_inner().expect("whole")].concat();
        let refused = read_back(&bytes).expect_err("it is no file");
        assert!(refused.to_string().contains("nothing that a backup has"), "{refused}");
    }
}

/// Where each entry lies: a head of 512 bytes, then its content in blocks of as many.
fn entries(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut archive = tar::Archive::new(bytes);
    let all = archive.entries().expect("entries").raw(true);
    all.map(|entry| {
        let entry = entry.expect("an entry");
        let start = usize::try_from(entry.raw_header_position()).expect("small");
        let size = usize::try_from(entry.size()).expect("small");
        start..start + 512 + size.div_ceil(512) * 512
    })
    .collect()
}
