//! The only program of the guest that moves: writes memory at a rate, checks every page, and prints heartbeats.
//!
//! The kernel starts this file as `init`. `SET` (MiB to write) and `RATE` (MiB of pages to write per second) are
//! words of the kernel's command line. A page has 64 lines. The write of generation `g` fills the line `g % 64`
//! with words that follow from page, line and `g`, so each generation of a page has only one right content. The
//! table of generations is outside of the pages. A heartbeat is a line `beat NUMBER written PAGES checked PAGES
//! wrong PAGES`, ten times per second.

use std::{
    env,
    io::Write,
    thread,
    time::{Duration, Instant},
};

const LINES: u64 = 64;
const WORDS: usize = 8;
const PAGE: usize = LINES as usize * WORDS;
const BEAT: Duration = Duration::from_millis(100);

fn main() {
    let number = |name: &str, default: u64| {
        env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let pages = (number("SET", 64) << 8).max(1) as usize;
    let rate = number("RATE", 40) << 8;
    // Every page once, so that the whole set is in memory.
    let mut memory = vec![0_u64; pages * PAGE];
    let mut generations = vec![0_u64; pages];
    for page in 0..pages {
        write(&mut memory, &mut generations, page);
    }
    say(&format!("ready {pages}"));
    let (start, mut beat) = (Instant::now(), Instant::now());
    let (mut written, mut checked, mut wrong, mut beats) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut random = 1_u64;
    loop {
        let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
        // The pieces are small, so that a guest that is late still prints heartbeats.
        for _ in 0..due.saturating_sub(written).min(512) {
            random = mix(random);
            write(&mut memory, &mut generations, (random % pages as u64) as usize);
            written += 1;
        }
        // Some pages in turn for every look at the clock.
        for _ in 0..4 {
            let page = (checked % pages as u64) as usize;
            wrong += u64::from(!is_right(&memory, generations[page], page));
            checked += 1;
        }
        if beat.elapsed() >= BEAT {
            beats += 1;
            say(&format!("beat {beats} written {written} checked {checked} wrong {wrong}"));
            beat = Instant::now();
        }
        if written >= due {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write(memory: &mut [u64], generations: &mut [u64], page: usize) {
    generations[page] += 1;
    let generation = generations[page];
    let at = page * PAGE + (generation % LINES) as usize * WORDS;
    for (word, place) in memory[at..at + WORDS].iter_mut().enumerate() {
        *place = value(page, generation, word);
    }
}

/// Returns `true` if every line of the page has the words of its last write.
fn is_right(memory: &[u64], generation: u64, page: usize) -> bool {
    (0..LINES).all(|line| {
        let age = (generation + LINES - line) % LINES;
        let at = page * PAGE + line as usize * WORDS;
        memory[at..at + WORDS].iter().enumerate().all(|(word, found)| {
            *found
                == generation
                    .checked_sub(age)
                    .filter(|last| *last > 0)
                    .map_or(0, |last| value(page, last, word))
        })
    })
}

fn value(page: usize, generation: u64, word: usize) -> u64 {
    mix(page as u64 ^ generation << 32 ^ (word as u64) << 60)
}

/// The finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn say(line: &str) {
    // A lost line is a lost heartbeat, which the test sees.
    let _ = writeln!(std::io::stdout(), "{line}");
}
