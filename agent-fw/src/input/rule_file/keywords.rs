//! The words that a field can have, from the type that reads it.

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

/// The words by which the variants of `T` are written.
pub(super) fn words<T: DeserializeOwned>() -> Vec<String> {
    let mut words = Words(Vec::new());
    // It has nothing to read; it says what it would have read.
    drop(T::deserialize(&mut words));
    words.0
}

struct Words(Vec<String>);

impl<'de> Deserializer<'de> for &mut Words {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("nothing"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0 = variants.iter().map(|word| (*word).to_owned()).collect();
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}
