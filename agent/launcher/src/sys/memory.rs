//! How little memory a launcher, and the root of the tree, hold on to: both run for as long as the machine does.
#![allow(unsafe_code)]

/// Above this, memory is the kernel's own zero pages, of which only those count that are touched: a thread's buffer for
/// the longest request, and the stack of a child that only executes.
const OWN_PAGES_FROM: libc::c_int = 16 << 10;

/// One heap for all threads; call it before any. They allocate little, and a heap each would be 136 KB for each task
/// that the budget allows, most of it never used.
pub(crate) fn one_heap() {
    // SAFETY: no other thread exists that could be allocating.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES_FROM);
    }
}

/// Gives back the pages of the program that starting took, such as the parsing of the configuration. They are read
/// from the page cache again when they are used again.
pub(crate) fn forget_start_up() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, end) in code_ranges(&maps) {
        // SAFETY: the range is this program's own code, mapped from its file and never written to, so that what is
        // dropped is what a later fault reads in again.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Where code is mapped from files. Read-only data is left out: it holds relocations, which are in no file.
fn code_ranges(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?;
        if rights != "r-xp" || !path.starts_with('/') {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_given_back() {
        let maps = "\
            55d31eb69000-55d31f175000 r--p 00000000 fe:00 5311651                    /usr/bin/flux\n\
            55d31f175000-55d32036a000 r-xp 0060b000 fe:00 5311651                    /usr/bin/flux\n\
            55d32036a000-55d32041f000 r--p 017ff000 fe:00 5311651                    /usr/bin/flux\n\
            55d35a5f9000-55d35a63f000 rw-p 00000000 00:00 0                          [heap]\n\
            7ffd1a9f5000-7ffd1a9f7000 r-xp 00000000 00:00 0                          [vdso]\n";
        assert_eq!(code_ranges(maps).collect::<Vec<_>>(), [(0x55d3_1f17_5000, 0x55d3_2036_a000)]);
    }

    #[test]
    fn a_program_runs_on_after_its_start_is_forgotten() {
        let sum = |n: u64| (1..=n).map(|i| i.to_string().len() as u64).sum::<u64>();
        let before = sum(1000);
        forget_start_up();
        assert_eq!(sum(1000), before);
    }
}
