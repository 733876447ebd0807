//! Values of a template, with Python's notions of truth, equality and order.

mod dict;
mod items;
mod iterate;
mod repr;

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use crate::ast::MacroDef;
use crate::error::{Error, Result};
use crate::loop_state::LoopState;
use crate::scope::Scope;
use crate::text::Text;

pub(crate) use dict::{Dict, Key};
pub(crate) use items::Items;
pub(crate) use repr::{float_repr, is_printable, repr, to_text, write_str};

/// A value.
#[derive(Clone)]
pub enum Value {
    /// An undefined value, with the reason for error messages.
    Undefined(Rc<str>),
    /// `none`.
    None,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Str(Rc<Text>),
    /// A list.
    List(Rc<Items>),
    /// A tuple.
    Tuple(Rc<Items>),
    /// A dictionary.
    Dict(Rc<Dict>),
    /// Another object created by the engine.
    Object(Rc<Object>),
}

/// Values that only the engine creates.
#[expect(private_interfaces, reason = "no other crate sees into these values")]
pub enum Object {
    /// `dict.items()` and similar views: a list that cannot be indexed. Carries Python's name of its type.
    View(&'static str, Items),
    /// A generator: can be read once, and is always true.
    Generator(RefCell<Items>),
    /// A group of `groupby`: the common key of its members, and their list.
    Group(Items),
    /// `namespace()`.
    Namespace(RefCell<Dict>),
    /// A macro, and the scope it was defined in.
    Macro(Arc<MacroDef>, Rc<Scope>),
    /// A global function, by name.
    Function(&'static str),
    /// A method, by its receiver and name.
    Method(Value, Box<str>),
    /// `loop`.
    Loop(LoopState),
    /// `cycler()`: its values and the index of the next one.
    Cycler(Items, std::cell::Cell<usize>),
    /// `joiner()`: its separator, with a flag that is set after the first use.
    Joiner(Rc<Text>, std::cell::Cell<bool>),
}

impl Value {
    /// Creates a string of the template.
    pub(crate) fn literal(string: &str) -> Self {
        Self::Str(Rc::new(Text::literal(string)))
    }

    pub(crate) fn text(text: Text) -> Self {
        Self::Str(Rc::new(text))
    }

    pub(crate) fn undefined(reason: impl AsRef<str>) -> Self {
        Self::Undefined(reason.as_ref().into())
    }

    /// Creates a list, unless it nests too deeply.
    pub(crate) fn list(items: Vec<Self>) -> Result<Self> {
        Ok(Self::List(Rc::new(Items::new(items)?)))
    }

    /// Creates a tuple, unless it nests too deeply.
    pub(crate) fn tuple(items: Vec<Self>) -> Result<Self> {
        Ok(Self::Tuple(Rc::new(Items::new(items)?)))
    }

    pub(crate) fn object(object: Object) -> Self {
        Self::Object(Rc::new(object))
    }

    /// Creates a generator over `items`.
    pub(crate) fn generator(items: Vec<Self>) -> Result<Self> {
        Ok(Self::object(Object::Generator(RefCell::new(Items::new(items)?))))
    }

    /// Converts a JSON value whose strings have the origin `origin`.
    ///
    /// # Errors
    /// If it nests too deeply.
    pub fn from_json(json: &serde_json::Value, origin: Option<u32>) -> Result<Self> {
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Self::Int(i128::from(int)),
                (None, Some(int)) => Self::Int(i128::from(int)),
                (None, None) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(string) => Self::from_text(string, origin),
            serde_json::Value::Array(items) => {
                Self::list(items.iter().map(|item| Self::from_json(item, origin)).collect::<Result<_>>()?)?
            }
            serde_json::Value::Object(entries) => {
                let mut dict = Dict::default();
                for (key, value) in entries {
                    dict.insert(Self::from_text(key, origin), Self::from_json(value, origin)?)?;
                }
                Self::Dict(Rc::new(dict))
            }
        })
    }

    /// Creates a dictionary with these keys, which count as the template's.
    ///
    /// # Errors
    /// If it nests too deeply.
    pub fn from_pairs<'k>(entries: impl IntoIterator<Item = (&'k str, Self)>) -> Result<Self> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(Self::literal(key), value)?;
        }
        Ok(Self::Dict(Rc::new(dict)))
    }

    /// Creates a list.
    ///
    /// # Errors
    /// If it nests too deeply.
    pub fn from_values(items: Vec<Self>) -> Result<Self> {
        Self::list(items)
    }

    /// Creates a string of the caller with the number `origin`; without one, of the template.
    #[must_use]
    pub fn from_text(string: &str, origin: Option<u32>) -> Self {
        Self::from_parts(&[(string, origin)])
    }

    /// Creates a string of several such parts.
    #[must_use]
    pub fn from_parts(parts: &[(&str, Option<u32>)]) -> Self {
        let mut text = Text::default();
        for (string, origin) in parts {
            text.push_from(string, *origin);
        }
        Self::text(text)
    }

    /// Returns the number of nested container levels, which bounds every recursion over values. Namespaces and macros count as none.
    pub(crate) fn nesting(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) => items.nesting(),
            Self::Dict(dict) => dict.nesting(),
            Self::Object(object) => match &**object {
                Object::View(_, items) | Object::Group(items) | Object::Cycler(items, _) => items.nesting(),
                Object::Generator(items) => items.borrow().nesting(),
                Object::Method(receiver, _) => 1 + receiver.nesting(),
                Object::Loop(state) => state.nesting(),
                Object::Namespace(_) | Object::Macro(..) | Object::Function(_) | Object::Joiner(..) => 0,
            },
            _ => 0,
        }
    }

    /// Returns Python's name of its type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Object(object) => match &**object {
                Object::View(name, _) => name,
                Object::Generator(_) => "generator",
                Object::Group(_) => "_GroupTuple",
                Object::Namespace(_) => "Namespace",
                Object::Macro(..) => "Macro",
                Object::Function(_) => "function",
                Object::Method(..) => "builtin_function_or_method",
                Object::Loop(_) => "LoopContext",
                Object::Cycler(..) => "Cycler",
                Object::Joiner(..) => "Joiner",
            },
        }
    }

    /// Fails where Jinja does when an undefined value is used.
    pub(crate) fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(reason) => Err(Error::render(&**reason)),
            _ => Ok(self),
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => text.len() > 0,
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(dict) => dict.len() > 0,
            Self::Object(object) => match &**object {
                Object::View(_, items) => !items.is_empty(),
                _ => true,
            },
        }
    }

    /// Returns the attributes of a namespace.
    pub(crate) fn namespace(&self) -> Option<&RefCell<Dict>> {
        match self {
            Self::Object(object) => match &**object {
                Object::Namespace(attributes) => Some(attributes),
                _ => None,
            },
            _ => None,
        }
    }

    /// Converts to a number; booleans count as numbers.
    pub(crate) fn number(&self) -> Option<Number> {
        match self {
            Self::Bool(value) => Some(Number::Int(i128::from(*value))),
            Self::Int(number) => Some(Number::Int(*number)),
            Self::Float(number) => Some(Number::Float(*number)),
            _ => None,
        }
    }

    /// Converts to a whole number.
    pub(crate) fn int(&self) -> Option<i128> {
        match self.number()? {
            Number::Int(number) => Some(number),
            Number::Float(_) => None,
        }
    }

    /// Evaluates Python's `==`.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => a.as_str() == b.as_str(),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Self::Dict(a), Self::Dict(b)) => a.equals(b),
            (Self::Object(a), Self::Object(b)) => Rc::ptr_eq(a, b),
            _ => match (self.number(), other.number()) {
                (Some(a), Some(b)) => a.compare(b) == Some(Ordering::Equal),
                _ => false,
            },
        }
    }

    /// Returns Python's order, or `None` for unordered numbers.
    ///
    /// # Errors
    /// If the types have no order.
    pub(crate) fn compare(&self, other: &Self, operator: &str) -> Result<Option<Ordering>> {
        self.defined()?;
        other.defined()?;
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => Ok(Some(a.as_str().cmp(b.as_str()))),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                match a.iter().zip(b.iter()).find(|(a, b)| !a.equals(b)) {
                    Some((a, b)) => a.compare(b, operator),
                    None => Ok(Some(a.len().cmp(&b.len()))),
                }
            }
            _ => match (self.number(), other.number()) {
                (Some(a), Some(b)) => Ok(a.compare(b)),
                _ => Err(Error::render(format!(
                    "'{operator}' not supported between instances of '{}' and '{}'",
                    self.type_name(),
                    other.type_name()
                ))),
            },
        }
    }
}

/// A number for arithmetic.
#[derive(Clone, Copy)]
pub(crate) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(crate) fn float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(&b)),
            _ => self.float().partial_cmp(&other.float()),
        }
    }
}
