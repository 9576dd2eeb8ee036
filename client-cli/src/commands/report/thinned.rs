//! Long series made short enough for a chart.

/// Most points of a series: more than a screen has columns for.
const MOST: usize = 1500;

/// The means of as few points in a row as make them at most [`MOST`], and how many those are. What is not a number counts in no mean.
pub(super) fn thinned<const N: usize>(points: &[[f64; N]]) -> (Vec<[f64; N]>, usize) {
    let every = points.len().div_ceil(MOST).max(1);
    let mean = |points: &[[f64; N]]| {
        let mut means = [f64::NAN; N];
        for (column, mean) in means.iter_mut().enumerate() {
            let finite = points.iter().map(|point| point[column]).filter(|value| value.is_finite());
            let (sum, count) = finite.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
            if count > 0 {
                *mean = sum / f64::from(count);
            }
        }
        means
    };
    (points.chunks(every).map(mean).collect(), every)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_series_stay_and_long_ones_are_means() {
        let few = [[1.0, 5.0], [2.0, 7.0]];
        assert_eq!(thinned(&few), (few.to_vec(), 1));
        let many: Vec<[f64; 2]> = (0..3000).map(|at| [f64::from(at), if at == 1 { f64::NAN } else { 2.0 }]).collect();
        let (points, every) = thinned(&many);
        assert_eq!((points.len(), every, points[0], points[1]), (1500, 2, [0.5, 2.0], [2.5, 2.0]));
    }
}
