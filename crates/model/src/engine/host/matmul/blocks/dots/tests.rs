use super::*;

#[test]
fn every_set_of_this_processor_computes_rightly() {
    for dots in Dots::available() {
        assert!(dots.computes_rightly(), "{dots:?}");
    }
    assert_eq!(Some(&Dots::best()), Dots::available().last());
}
