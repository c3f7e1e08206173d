//! [`Spread`]: what several rounds say together.

use std::fmt;

use crate::{
    plan::CROWDS,
    results::{Part, Results, Sample},
};

/// A median, the least and the most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Self {
            median,
            least,
            most,
        })
    }

    /// With the same factor on all three.
    pub fn times(self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            least: self.least * factor,
            most: self.most * factor,
        }
    }
}

impl fmt::Display for Spread {
    /// `median (least–most)`; the precision is the number of decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(0);
        let number = |value| grouped(value, decimals);
        write!(
            f,
            "{} ({}–{})",
            number(self.median),
            number(self.least),
            number(self.most)
        )
    }
}

/// A number with thin spaces between thousands.
pub fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), String::new()), |(a, b)| {
            (a, format!(".{b}"))
        });
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        let left = whole.len() - at;
        if at > 0 && left % 3 == 0 && whole.len() > 4 {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out + &rest
}

/// One endpoint under so many clients.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub part: Part,
    pub endpoint: &'a str,
    pub clients: usize,
}

impl Results {
    /// The samples of a subject, round by round.
    pub fn samples(&self, at: At<'_>, subject: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| {
            let place = (sample.part, sample.endpoint.as_str(), sample.clients);
            place == (at.part, at.endpoint, at.clients) && sample.subject == subject
        })
    }

    pub fn spread(
        &self,
        at: At<'_>,
        subject: &str,
        value: impl Fn(&Sample) -> f64,
    ) -> Option<Spread> {
        Spread::of(self.samples(at, subject).map(value))
    }

    /// How many times more than `other`: within each round, then over the rounds.
    pub fn ratio(
        &self,
        at: At<'_>,
        one: &str,
        other: &str,
        value: impl Fn(&Sample) -> f64,
    ) -> Option<Spread> {
        self.ratio_of((at, one), (at, other), value)
    }

    /// [`ratio`](Self::ratio) between two endpoints.
    pub fn ratio_of(
        &self,
        (at, one): (At<'_>, &str),
        (base_at, base): (At<'_>, &str),
        value: impl Fn(&Sample) -> f64,
    ) -> Option<Spread> {
        Spread::of(self.samples(at, one).filter_map(|sample| {
            let base = self
                .samples(base_at, base)
                .find(|it| it.round == sample.round)?;
            Some(value(sample) / value(base))
        }))
    }

    /// Requests per second of the greatest crowd against the best of the smaller ones of the same round.
    pub fn goodput_kept(&self, endpoint: &str, subject: &str) -> Option<Spread> {
        let [fewer @ .., most] = CROWDS;
        let at = |clients| At {
            part: Part::Overload,
            endpoint,
            clients,
        };
        Spread::of(self.samples(at(most), subject).map(|sample| {
            let best = fewer
                .iter()
                .flat_map(|clients| self.samples(at(*clients), subject));
            let best = best
                .filter(|it| it.round == sample.round)
                .map(Sample::per_second)
                .fold(0.0, f64::max);
            sample.per_second() / best
        }))
    }

    /// Round trips per request.
    pub fn trips_each(&self, endpoint: &str, subject: &str) -> Option<f64> {
        let trips = self
            .trips
            .iter()
            .find(|trips| trips.endpoint == endpoint && trips.subject == subject)?;
        Some(trips.each())
    }

    /// The numbers of clients that `part` was run with.
    pub fn clients(&self, part: Part) -> Vec<usize> {
        let mut clients: Vec<_> = self
            .samples
            .iter()
            .filter(|it| it.part == part)
            .map(|it| it.clients)
            .collect();
        clients.sort_unstable();
        clients.dedup();
        clients
    }
}

/// Microseconds of the service's processor time per request.
pub fn service_each(sample: &Sample) -> f64 {
    sample.each(sample.service_us)
}

/// Microseconds of the server's processor time per request.
pub fn server_each(sample: &Sample) -> f64 {
    sample.each(sample.server_us)
}

#[cfg(test)]
mod tests {
    use super::{Spread, grouped};

    #[test]
    fn a_spread_is_the_median_and_the_ends() {
        let spread = Spread::of([3.0, 1.0, 2.0, 10.0].into_iter()).unwrap();
        assert_eq!(format!("{spread:.1}"), "2.5 (1.0–10.0)");
        assert_eq!(Spread::of(std::iter::empty()), None);
        assert_eq!(grouped(12345.6, 0), "12\u{2009}346");
        assert_eq!(grouped(1234.0, 0), "1234");
    }
}
