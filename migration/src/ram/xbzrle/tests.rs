//! Encoder and decoder against each other and against the plainest encoder there is; what is no delta.

use proptest::prelude::*;

use super::*;

/// A page of few runs, many runs, or noise, and the same with some of it changed.
fn pages() -> impl Strategy<Value = (Box<PageBytes>, Box<PageBytes>)> {
    let change = (0usize..PAGE, prop_oneof![1usize..4, 1usize..80, 1usize..PAGE], any::<u8>(), 1usize..5);
    (any::<u64>(), prop::collection::vec(change, 0..40)).prop_map(|(seed, changes)| {
        let mut old = Box::new([0; PAGE]);
        let mut state = seed;
        for byte in old.iter_mut() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8 & (seed as u8);
        }
        let mut new = old.clone();
        for (start, length, by, step) in changes {
            let end = (start + length).min(PAGE);
            new[start..end].iter_mut().step_by(step).for_each(|byte| *byte ^= by);
        }
        (old, new)
    })
}

/// Runs byte by byte.
fn plainly(old: &PageBytes, new: &PageBytes) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, number: usize| match number {
        0..128 => out.push(number as u8),
        _ => out.extend([number as u8 | 128, (number / 128) as u8]),
    };
    let changed: Vec<usize> = (0..PAGE).filter(|at| old[*at] != new[*at]).collect();
    let mut end = 0;
    for run in changed.chunk_by(|a, b| b - a <= 1 + GAP_BYTES) {
        let (start, stop) = (run[0], run[run.len() - 1] + 1);
        number(&mut out, start - end);
        number(&mut out, stop - start);
        out.extend_from_slice(&new[start..stop]);
        end = stop;
    }
    out
}

fn encoded(old: &PageBytes, new: &PageBytes, room: usize) -> (Encoded, Vec<u8>) {
    let mut out = vec![0xee; room];
    let encoded = encode(old, new, &mut out);
    (encoded, out)
}

proptest! {
    #[test]
    fn all_processors_see_the_same_bytes((old, new) in pages()) {
        let truth: Vec<bool> = old.iter().zip(new.iter()).map(|(a, b)| a != b).collect();
        let masks = mask::scalar(&old, &new);
        let seen: Vec<bool> = (0..PAGE).map(|at| masks[at / 64] >> (at % 64) & 1 == 1).collect();
        prop_assert_eq!(seen, truth);
        prop_assert_eq!(mask::differing(&old, &new), masks);
        #[cfg(target_arch = "x86_64")]
        prop_assert_eq!(mask::sse2(&old, &new), masks);
    }

    #[test]
    fn a_delta_is_the_plain_one_and_comes_back((old, new) in pages()) {
        let plain = plainly(&old, &new);
        let (result, out) = encoded(&old, &new, 2 * PAGE);
        if plain.is_empty() {
            prop_assert_eq!(result, Encoded::Same);
            return Ok(());
        }
        prop_assert_eq!(result, Encoded::Bytes(plain.len()));
        prop_assert_eq!(&out[..plain.len()], &plain);
        let mut page = old.clone();
        decode(&plain, &mut page).unwrap();
        prop_assert_eq!(&page, &new);
        // With just enough room it is the same; with a byte less there is none.
        prop_assert_eq!(encoded(&old, &new, plain.len()), (result, plain.clone()));
        prop_assert_eq!(encoded(&old, &new, plain.len() - 1).0, Encoded::Overflow);
        // Any part of it is an error, or a delta of its own that ends with a run.
        let cut = plain.len() / 2;
        match decode(&plain[..cut], &mut page) {
            Ok(()) => prop_assert!(cut > 0),
            Err(DeltaError::Short { .. } | DeltaError::Empty) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn any_bytes_are_a_delta_or_an_error(delta in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut page = [0; PAGE];
        if decode(&delta, &mut page).is_ok() {
            let mut again = [0; PAGE];
            decode(&delta, &mut again).unwrap();
            prop_assert_eq!(page, again);
        }
    }
}

#[test]
fn what_is_no_delta_is_named() {
    let mut page = [0; PAGE];
    for (delta, error) in [
        (&[][..], DeltaError::Empty),
        (&[0], DeltaError::Short { length: 1 }),
        (&[0x80], DeltaError::Short { length: 1 }),
        (&[0, 2, 1], DeltaError::Short { length: 3 }),
        (&[0, 1, 7, 3], DeltaError::Short { length: 4 }),
        (&[0x80, 0, 1, 7], DeltaError::Number { at: 0 }),
        (&[0, 0x81, 0x80, 1], DeltaError::Number { at: 1 }),
        (&[5, 0], DeltaError::EmptyRun { at: 1 }),
        (&[0, 1, 7, 0, 1, 7], DeltaError::EmptyRun { at: 3 }),
        (&[0xff, 0x1f, 2, 7, 7], DeltaError::Outside { end: 4097 }),
        (&[0xff, 0x7f, 0xff, 0x7f], DeltaError::Outside { end: 2 * 0x3fff }),
    ] {
        assert_eq!(decode(delta, &mut page), Err(error.clone()), "{delta:x?}");
        assert!(error.to_string().starts_with("a delta "));
    }
    // The last byte of a page, and all of it.
    decode(&[0xff, 0x1f, 1, 9], &mut page).unwrap();
    assert_eq!(page[PAGE - 1], 9);
    let whole: Vec<u8> = [0, 0x80, 0x20].into_iter().chain([5; PAGE]).collect();
    decode(&whole, &mut page).unwrap();
    assert_eq!(page, [5; PAGE]);
}
