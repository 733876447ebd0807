//! Arguments of calls.

use std::rc::Rc;

use crate::ast::Name;
use crate::error::{Error, Result};
use crate::text::Text;
use crate::value::Value;

/// Evaluated arguments of a call.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Value>,
    pub(crate) keyword: Vec<(Name, Value)>,
}

impl Arguments {
    /// Binds the arguments to names; positional ones follow the order of `names`.
    ///
    /// # Errors
    /// If there are too many, unknown ones, or one twice.
    pub(crate) fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            let found = self.positional.len();
            return Err(Error::render(format!("{function}() takes at most {N} arguments ({found} given)")));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.keyword {
            let slot = names.iter().position(|known| *known == &*name).map(|index| &mut bound[index]);
            match slot {
                Some(slot @ None) => *slot = Some(value),
                Some(Some(_)) => return Err(Error::render(format!("{function}() got multiple values for argument '{name}'"))),
                None => return Err(Error::render(format!("{function}() got an unexpected keyword argument '{name}'"))),
            }
        }
        Ok(bound)
    }
}

/// Returns the string in `value`, the argument of `method`.
pub(crate) fn string_argument(method: &str, value: Option<Value>) -> Result<Rc<Text>> {
    match value {
        Some(Value::Str(text)) => Ok(text),
        Some(other) => {
            other.defined()?;
            Err(Error::render(format!("{method}() argument must be str, not {}", other.type_name())))
        }
        None => Err(Error::render(format!("{method}() takes an argument"))),
    }
}

/// Returns the whole number in `value`, if there is one.
pub(crate) fn int_argument(method: &str, value: Option<Value>) -> Result<Option<i128>> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => match value.defined()?.int() {
            Some(int) => Ok(Some(int)),
            None => Err(Error::render(format!("{method}() takes an integer, not {}", value.type_name()))),
        },
    }
}
